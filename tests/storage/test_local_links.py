"""Symbolic links and impossible paths in a local store: followed, or named in the error."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.stores import keys, refusal
from tokenmill.errors import UserError
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one object, next to another folder."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_bytes(b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b").write_bytes(b"2")
    return tmp_path / "store"


def test_links_are_followed(folder: Path) -> None:
    """A link to a file or to another folder is listed as what it points to."""
    (folder / "file").symlink_to("../elsewhere/b")
    (folder / "folder").symlink_to("../elsewhere")
    assert keys(LocalStore(str(folder))) == ["a", "file", "folder/b"]


@pytest.mark.parametrize(
    ("name", "target"),
    [("link", "missing"), ("link", "link"), ("link", "."), ("link", ".."), ("below/link", "..")],
    ids=["nothing", "itself", "its folder", "above its folder", "two folders up"],
)
def test_a_link_that_leads_nowhere_is_named(folder: Path, name: str, target: str) -> None:
    """A listing neither leaves it out nor lists the same file under many names."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(target)
    line = refusal(UserError, lambda: keys(LocalStore(str(folder))))
    assert line.startswith(f"{folder / name}: ")


def test_a_hidden_link_to_nothing_is_no_object(folder: Path) -> None:
    """Emacs marks an open file with one."""
    (folder / ".#a").symlink_to("user@host.1234:567")
    assert keys(LocalStore(str(folder))) == ["a"]


def create(store: Store) -> None:
    store.put_if_absent("data/key", b"")


def replace(store: Store) -> None:
    store.replace("data/key", b"")


def write(store: Store) -> None:
    with store.open_new("data/key"):
        pass


@pytest.mark.parametrize("operation", [create, replace, write])
@pytest.mark.parametrize("root", ["dangling", "dangling/below", "loop/below", "x" * 300])
def test_a_path_that_leads_nowhere_cannot_be_written(
    tmp_path: Path, root: str, operation: Callable[[Store], None]
) -> None:
    """Every write names the object; nothing is made at the end of the link."""
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to("loop")
    line = refusal(UserError, lambda: operation(LocalStore(str(tmp_path / root))))
    assert f"{tmp_path}/{root}" in line
    with suppress(FileNotFoundError):
        assert not list((tmp_path / "missing").iterdir())
