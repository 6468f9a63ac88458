"""`_SUCCESS`: the object that marks an output as finished and holds its totals."""

import json
from dataclasses import asdict

from tokenmill.output.counts import Counts
from tokenmill.storage.base import Store

SUCCESS_KEY = "_SUCCESS"


def read_success(store: Store) -> Counts | None:
    """The totals of a finished output; None if it is not finished."""
    try:
        return Counts(**json.loads(store.read(SUCCESS_KEY)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # Another tool's marker: a run verifies the output and replaces it with ours.
        return None


def write_success(store: Store, totals: Counts) -> None:
    """Mark the output as finished: the last write of its last run."""
    store.replace(SUCCESS_KEY, (json.dumps(asdict(totals)) + "\n").encode())
