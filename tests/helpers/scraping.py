"""Reading a metrics endpoint as Prometheus does."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

Value = TypeVar("Value")

_PATIENCE_S = 120


@dataclass(frozen=True)
class Sample:
    """One series' value now, and its metric's kind."""

    name: str
    kind: str
    labels: Mapping[str, str]
    value: float


def scraped(address: str, path: str = "/metrics") -> str:
    """The text at an endpoint; empty if nothing listens there, or is not ready."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, ConnectionError):
        return ""


def samples_of(text: str) -> list[Sample]:
    """The series of a scraped text."""
    return [
        Sample(sample.name, family.type, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def eventually(ask: Callable[[], Value]) -> Value:
    """What it says as soon as it says something."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (said := ask()):
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
    return said
