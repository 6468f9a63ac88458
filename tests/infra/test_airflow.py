"""The DAG for Airflow, with stand-ins for Airflow."""

import re
import runpy
import shlex
import sys
from types import ModuleType
from typing import Any, Self

import pytest
from helpers.command import ROOT
from tokenmill.cli import app
from typer.main import get_command

DAG_FILE = ROOT / "infra" / "airflow" / "tokenmill_dag.py"


class Operator:
    """Keeps what it is made with."""

    made: list[dict[str, Any]]

    def __init__(self, **arguments: Any) -> None:
        self.made.append(arguments)


class Dag:
    """A context that does nothing."""

    def __init__(self, **_: Any) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the DAG's one command, for the night of 28 November."""
    monkeypatch.setattr(Operator, "made", [], raising=False)
    names = ["airflow", "airflow.providers", "airflow.providers.standard"]
    names.append("airflow.providers.standard.operators")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    bash = ModuleType("airflow.providers.standard.operators.bash")
    monkeypatch.setattr(bash, "BashOperator", Operator, raising=False)
    sdk = ModuleType("airflow.sdk")
    monkeypatch.setattr(sdk, "DAG", Dag, raising=False)
    monkeypatch.setitem(sys.modules, bash.__name__, bash)
    monkeypatch.setitem(sys.modules, sdk.__name__, sdk)
    runpy.run_path(str(DAG_FILE))
    (task,) = Operator.made
    return shlex.split(task["bash_command"].replace("{{ ds }}", "2026-11-28"))


def test_the_command_is_one_that_there_is(command: list[str]) -> None:
    """It submits and follows, with options that `tokenmill submit` has."""
    program, name, *arguments = command
    assert (program, name) == ("tokenmill", "submit")
    submit = get_command(app).commands["submit"]  # type: ignore[attr-defined]
    known = {option for each in submit.params for option in each.opts}
    assert {word for word in arguments if word.startswith("--")} <= known
    assert "--follow" in arguments


def test_a_night_has_its_own_output(command: list[str]) -> None:
    """The same date names what is read and what is written: a second try is the same job."""
    settings = [word for word in command if re.match(r"(in|out)put\.path=", word)]
    assert len(settings) == 2
    assert all("dt=2026-11-28/" in setting for setting in settings)
