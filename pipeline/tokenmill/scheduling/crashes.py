"""Why engines crash, and whether the rows are to blame."""

import re

#: The reason of a process that ended without a report, as when it is killed from outside.
KILLED = "its process was killed"
#: The same, before the replica was ready.
KILLED_WHILE_LOADING = "its process was killed while it loaded the model"

_MAX_CHARACTERS = 500
# What to do about reasons that contain a pattern.
_REMEDIES = {
    "out of memory|OutOfMemory|MemoryError|can.t allocate|bad_alloc|cannot allocate": (
        "Lower model.engine.max_num_seqs, max_num_batched_tokens or max_model_len, or the engine's "
        "share of memory (gpu_memory_utilization on a GPU, kv_cache_memory_bytes on a CPU)."
    ),
    "does not use offset": (
        "Set model.engine.enable_chunked_prefill: false, or remove the seed from sampling."
    ),
    "model.request_timeout_s": "If the engine is only slow, raise model.request_timeout_s.",
    re.escape(KILLED): (
        "If the machine was short of memory, which dmesg shows, use fewer replicas or a smaller "
        "model, or lower model.engine.kv_cache_memory_bytes."
    ),
}


def crash_reason(error: BaseException) -> str:
    """The error in one printable line, with its type."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "".join(character for character in text if character.isprintable())[:_MAX_CHARACTERS]


def remedy(reason: str) -> str:
    """What to do about engines that crash for this reason, in a sentence; empty if unknown."""
    for pattern, sentence in _REMEDIES.items():
        if re.search(pattern, reason, re.IGNORECASE):
            return sentence
    return ""


class CrashHistory:
    """How often engines have crashed for one reason, on different rows.

    A row counts if it was alone in the engine. Reasons are the same if they differ in numbers only,
    such as sizes and addresses. Whenever an engine has answered rows, the count starts again: then
    engines work, and the crashes are the fault of certain rows, or of chance. A killed process has
    no reason of its own and does not count.
    """

    def __init__(self) -> None:
        self._rows: dict[str, set[tuple[int, int]]] = {}
        self._last = ""

    def crashed(self, reason: str, row: tuple[int, int] | None) -> None:
        """Count a crash; `row` is the unit and the row that was alone in the engine, if one was."""
        self._last = re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?", "#", reason)
        rows = self._rows.setdefault(self._last, set())
        if row is not None and reason != KILLED:
            rows.add(row)

    def progressed(self) -> None:
        """An engine has answered rows."""
        self._rows.clear()

    @property
    def num_rows(self) -> int:
        """Different rows on which engines crashed for the last reason, since rows were answered."""
        return len(self._rows.get(self._last, ()))
