"""How often Python looks for garbage where rows are worked on by the thousand."""

import gc

# Python's own 700 are the rows of a moment: each look goes through the token lists of all of them.
_YOUNG_OBJECTS = 10_000


def collect_seldom() -> None:
    """Look for circles of garbage less often, and never at what is loaded by now.

    Rows leave none behind. Looking for them took two fifths of a row's time (`python -m bench
    null`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
