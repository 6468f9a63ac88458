"""Load tokenizers without torch, which transformers imports although tokenizers do not need it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What transformers imports for models, if it is installed. Tokenizers need none of it.
_HIDDEN = ("torch", "sklearn")


@contextmanager
def without_torch() -> Iterator[None]:
    """Import transformers, for tokenizers alone, as if torch were not installed.

    This takes two seconds instead of six. Afterwards transformers is forgotten, because it would
    not find torch again. Does nothing in a process that has imported one of them.
    """
    if "transformers" in sys.modules or "torch" in sys.modules:
        yield
        return
    hidden: dict[str, Any] = dict.fromkeys(_HIDDEN)
    sys.modules |= hidden
    try:
        yield
    finally:
        for name in list(sys.modules):
            if name.partition(".")[0] in (*_HIDDEN, "transformers"):
                del sys.modules[name]
