"""A user's own module, with the pydantic model of an answer."""

from datetime import date
from enum import StrEnum

from pydantic import BaseModel, Field


class Mood(StrEnum):
    GLAD = "glad"
    CROSS = "cross"


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int | None = None


class Letter(BaseModel):
    sender: Person
    others: list[Person]
    written: date | None
    mood: Mood = Mood.GLAD


class Node(BaseModel):
    children: list["Node"]


NO_MODEL = 1
