"""The folder for models on this machine, filled by one process at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """Where models are kept: TOKENMILL_CACHE, or `~/.cache/tokenmill`."""
    configured = os.environ.get("TOKENMILL_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "tokenmill"


@contextmanager
def filling(folder: Path) -> Iterator[Path | None]:
    """An empty folder that becomes `folder` if the block ends well; None if that is there.

    One process of a machine fills at a time, the others wait for it. Beside the empty folder there
    is room for what is needed on the way; it is removed, now or, after a kill, by the next.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            yield None
            return
        workshop = folder.parent / f".{folder.name}"
        shutil.rmtree(workshop, ignore_errors=True)
        target = workshop / "model"
        target.mkdir(parents=True)
        try:
            yield target
            target.rename(folder)
        finally:
            shutil.rmtree(workshop)
