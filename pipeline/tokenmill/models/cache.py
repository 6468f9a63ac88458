"""The cache of models on this machine, filled by one process at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """Where models are cached: TOKENMILL_CACHE, or `~/.cache/tokenmill`."""
    configured = os.environ.get("TOKENMILL_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "tokenmill"


@contextmanager
def fill_folder(folder: Path) -> Iterator[Path | None]:
    """An empty folder that becomes `folder` if the block succeeds; None if `folder` exists.

    Only one process of a machine fills a folder; the others wait for it. The parent of the empty
    folder is a work folder for intermediate files. It is removed at the end of the block, or, if
    the process is killed, by the next one that fills the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            yield None
            return
        work_folder = folder.parent / f".{folder.name}"
        shutil.rmtree(work_folder, ignore_errors=True)
        target = work_folder / "model"
        target.mkdir(parents=True)
        try:
            yield target
            target.rename(folder)
        finally:
            shutil.rmtree(work_folder)
