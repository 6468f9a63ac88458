"""Reads a metrics endpoint as Prometheus does."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

Value = TypeVar("Value")

_TIMEOUT_S = 120


@dataclass(frozen=True)
class Sample:
    """The current value of one series, and the kind of its metric."""

    name: str
    kind: str
    labels: Mapping[str, str]
    value: float


def scraped(address: str, path: str = "/metrics") -> str:
    """The text at an endpoint; empty if nothing listens there yet."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, ConnectionError):
        return ""


def samples_of(text: str) -> list[Sample]:
    """The samples in a scraped text."""
    return [
        Sample(sample.name, family.type, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def eventually(ask: Callable[[], Value]) -> Value:
    """The first true result of `ask`, which is called until then."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not (result := ask()):
        assert time.monotonic() < deadline, result
        time.sleep(0.2)
    return result
