"""The documents say what is so: each command block is run, or looked up word by word.

A page's blocks are a script, which is run from top to bottom in a folder with a corpus, a job and
some outputs. A block below `<!-- needs: … -->` is not run; its commands, options, targets and files
are checked without running them, like those in sentences.
"""

import importlib.util
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import click
import pytest
import yaml
from helpers.command import ROOT, program
from helpers.documents import NEEDS, PAGES, blocks, shell_blocks, spoken_commands, write_games
from helpers.inprocess import invoke
from ray.scripts.scripts import cli as ray_cli
from tokenmill.cli import app
from tokenmill.errors import ExitCode
from tokenmill.job.loader import load_job
from typer.main import get_command

from bench.__main__ import MEASUREMENTS, PARTS

# What starts an engine starts the one without a model.
ASKING = {"validate", "preview", "plan", "run"}
#: Tasks that write no text, and tasks that ask by words of their own.
SILENT = {"classify", "tag", "score", "embed", "reward", "rerank"}
PROMPTED = {"rerank", "transcribe", "translate"}
REQUEST = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"model": "fake", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}}\n'
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a corpus, the README's job, what former runs and plans have left."""
    folder = tmp_path_factory.mktemp("desk")
    write_games(folder / "corpus")
    text, *_ = [block.text for block in blocks(ROOT / "README.md") if block.language == "yaml"]
    (folder / "job.yaml").write_text(text, encoding="utf-8")
    for name in ("requests.jsonl", "more.jsonl"):
        (folder / name).write_text(REQUEST)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("sys.argv", ["build.py", "out/corpus"])
        runpy.run_path(str(ROOT / "jobs" / "demo" / "build.py"), run_name="__main__")
        labels = ["--set", "task={kind: classify, choices: [good, bad]}", "--set", "sampling=null"]
        for name, options in {"monday": labels, "tuesday": labels, "summaries": []}.items():
            run_here("run", "job.yaml", "--output", f"out/{name}", *options)
        run_here("run", "job.yaml", "--output", "out/try", "--limit", "2000")
        run_here("plan", "job.yaml", "--from", "out/try", "--save", "plan.json")
    return folder


def run_here(name: str, *arguments: str) -> None:
    """Run a command of ours in this process, with the engine that needs no model."""
    words = list(arguments)
    if name in ASKING:
        words += ["--set", "model.source=fake"]
    if "--model" in words:
        words[words.index("--model") + 1] = "fake"
    done = invoke(name, *words)
    assert done.exit_code == ExitCode.FINISHED, (name, words, done.output)


RUN_PAGES = [page for page in PAGES if any(block.need is None for block in shell_blocks(page))]


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_a_script(
    page: Path, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of the blocks that need nothing ends well, one after another."""
    here = shutil.copytree(desk, tmp_path / "here")
    monkeypatch.chdir(here)
    for block in shell_blocks(page):
        for words in block.commands() if block.need is None else ():
            assert words[0] == "tokenmill", f"{words} is not run here; say what its block needs"
            run_here(*words[1:])


@each_page
def test_every_command_is_one_that_there_is(page: Path) -> None:
    """Programs, commands, options, targets, parts and files of each block are there."""
    for block in shell_blocks(page):
        assert block.need is None or block.need in NEEDS, block.comment
        for words in block.commands():
            require_known(words)


@each_page
def test_a_block_with_commands_says_that_it_is_one(page: Path) -> None:
    """No command hides in a block of another language, or of none."""
    others = [block for block in blocks(page) if block not in shell_blocks(page)]
    for block in others:
        assert not re.search(r"^(\$ )?(tokenmill|make|ray|kubectl) ", block.text, re.MULTILINE)


@each_page
def test_a_sentence_names_commands_that_there_are(page: Path) -> None:
    """Commands in the text have the options, targets, parts and files that it names."""
    for words in spoken_commands(page):
        if words[0] == "tokenmill" and words[1] in OURS.commands:
            options = {word.split("=")[0] for word in words if word.startswith("-")}
            command = OURS.commands[words[1]]
            known = {name for each in command.params for name in [*each.opts, *each.secondary_opts]}
            assert options <= known, words
        elif words[0] != "tokenmill":
            require_known([word for word in words if not re.fullmatch(r"[A-Z]+…?", word)])
        else:
            assert words[1] in {"COMMAND", "--install-completion"}, words


OURS: Any = get_command(app)


def require_known(words: list[str]) -> None:
    """Check that a program takes a command line, as far as is known without running it."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    name, *arguments = words
    if name in {"tokenmill", "ray"}:
        require_parsed(OURS if name == "tokenmill" else ray_cli, arguments)
    elif name == "make":
        run_quietly("/usr/bin/env", "make", "-n", *arguments)
    elif name in {"python", ".venv/bin/python"}:
        require_program(arguments)
    elif name == "kubectl":
        # Asked for help, it reads all flags and then does nothing.
        run_quietly(program("kubectl"), *arguments, "--help")
    elif name == "aws":
        require_operation(*arguments)
    elif name == "pip":
        (place,) = [word for word in arguments if "[" in word]
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert place[2:-1] in extras["optional-dependencies"]
    elif name == "bench/gpu.sh":
        script = (ROOT / name).read_text()
        assert all(f"{word})" in script for word in arguments if word.startswith("-"))
    elif name == "export":
        assert all(re.match(r"[A-Z_]+=", word) for word in arguments), words
    else:
        others = {"apt-get", "docker", "prometheus", "sbatch", "vllm", "pytest"}
        assert Path(name).name in others or name == ".", words
    require_files(words)


def require_parsed(group: Any, words: list[str]) -> None:
    """That the command line of these words is read without a mistake; nothing is run."""
    name, *arguments = words
    assert name in group.commands, words
    command = group.commands[name]
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        require_parsed(command, arguments)
    else:
        command.make_context(name, arguments)


def require_program(arguments: list[str]) -> None:
    """That a module or a file of Python's is there, and of the bench its parts."""
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1])
        parts = [word for word in arguments[2:] if re.fullmatch(r"[a-z]+", word)]
        assert arguments[1] != "bench" or set(parts) <= PARTS.keys() | MEASUREMENTS.keys()
    elif arguments[0] != "-O":
        assert (ROOT / arguments[0]).is_file(), arguments


def require_operation(service: str, name: str, *arguments: str) -> None:
    """That AWS has this operation, and its operation these parameters."""
    model = botocore.session.Session().get_service_model(service.removesuffix("api"))
    operation = model.operation_model("".join(map(str.capitalize, name.split("-"))))
    options = {
        "".join(map(str.capitalize, word[2:].split("-")))
        for word in arguments
        if word.startswith("--")
    }
    assert options <= operation.input_shape.members.keys()


def require_files(words: list[str]) -> None:
    """That each file of the project that a command names is there."""
    for word in words:
        path = word.removeprefix("file://")
        if re.match(r"(bench|docs|infra|jobs|tests)/", path):
            assert (ROOT / path).exists(), word


def run_quietly(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)


def yaml_parts(page: Path) -> list[str]:
    """A page's blocks of our YAML, divided where a section comes a second time."""
    parts = []
    for block in blocks(page):
        if block.language == "yaml" and not block.comment:
            seen: list[str] = [""]
            for line in block.text.splitlines(keepends=True):
                key = re.match(r"\w+:", line)
                if key and re.search(rf"^{key[0]}", seen[-1], re.MULTILINE):
                    seen.append("")
                seen[-1] += line
            parts += seen
    return parts


@each_page
def test_a_block_of_yaml_is_a_job_or_a_part_of_one(page: Path, tmp_path: Path) -> None:
    """It loads; a part of a job together with what it leaves out."""
    rest = {
        "name": "part",
        "input": {"path": "corpus"},
        "model": {"source": "fake"},
        "output": {"path": "out"},
    }
    for part in yaml_parts(page):
        data = yaml.safe_load(part)
        if "output" not in data:
            data.get("input", {}).setdefault("path", "corpus")
            kind = data.get("task", {}).get("kind")
            if kind not in SILENT:
                data.setdefault("sampling", {"max_tokens": 16})
            if kind not in PROMPTED:
                data.setdefault("prompt", {"user": "{{ text }}"})
            part = yaml.safe_dump({**rest, **data})  # noqa: PLW2901 - the same, made whole
        (tmp_path / "job.yaml").write_text(part, encoding="utf-8")
        load_job(tmp_path / "job.yaml", ["date=2026-01-31"])
