"""Break the package on purpose, one mistake at a time, and see that the quick tests notice.

    python tests/faults/mutations.py [PART OF A NAME ...]

Each mistake is made in a copy of package and tests in a temporary folder. Prints a table of which
test noticed it, and ends with 1 if a mistake went unnoticed. `protocol_model` makes the same
mistakes in a model of the protocol.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_COPIED = ("pipeline", "tests", "infra", "jobs", "pyproject.toml")
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Mutation:
    """A mistake: in a module of the package `before` becomes `after`; the tests that must fail."""

    name: str
    module: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "no conditional PUT, and delete before write (disk)",
        "storage/local",
        "        os.link(temporary, target)\n",
        "        if os.path.exists(target):\n"
        "            os.unlink(target)\n"
        "        os.link(temporary, target)\n",
        ("storage/test_stores", "output/test_commit"),
    ),
    Mutation(
        "no conditional PUT (S3)",
        "storage/s3",
        'mode="create"',
        'mode="overwrite"',
        ("storage/test_s3", "output/test_commit"),
    ),
    Mutation(
        "commit before write",
        "output/commit",
        "    if store.put_if_absent(unit.key, data):\n",
        "    if store.put_if_absent(unit.key, encode(table.slice(0, 0), record)):\n"
        "        store.replace(unit.key, data)\n",
        ("output/test_commit", "faults/test_crash_points"),
    ),
    Mutation(
        "resume from a stale plan",
        "output/plan_file",
        "        plan = existing\n",
        "",
        ("output/test_output",),
    ),
    Mutation(
        "swallow a write error",
        "output/commit",
        "    if store.put_if_absent(unit.key, data):\n",
        "    try:\n"
        "        is_first = store.put_if_absent(unit.key, data)\n"
        "    except RunFailed:\n"
        "        is_first = True\n"
        "    if is_first:\n",
        ("storage/test_store_retries",),
    ),
    Mutation(
        "drop a row's error",
        "tasks/unit_tables",
        "error_array(rejects))",
        "error_array([None] * len(rejects)))",
        ("output/test_schema",),
    ),
    Mutation(
        "treat a foreign 412 as failure",
        "output/commit",
        "    return Commit(existing, is_ours=existing.attempt == record.attempt)\n",
        "    if existing.attempt != record.attempt:\n"
        "        raise RunFailed(unit.key)\n"
        "    return Commit(existing, is_ours=True)\n",
        ("output/test_commit",),
    ),
    Mutation(
        "stream to the final name",
        "storage/local",
        "            return _linked(temporary, target)\n",
        "            if os.path.exists(target):\n"
        "                return False\n"
        '            with open(target, "xb") as file:\n'
        "                file.write(data)\n"
        "            return True\n",
        ("storage/test_stores", "output/test_commit"),
    ),
    Mutation(
        "skip an unknown unit on resume",
        "output/output",
        '        raise UserError(f"{store.url}/{key} {problem};',
        '        str(f"{store.url}/{key} {problem};',
        ("output/test_output",),
    ),
    Mutation(
        "skip an unknown unit in the proof",
        "output/verify",
        "        yield _finding(Damage.FOREIGN, key, problem)\n",
        "        del problem\n",
        ("output/test_verify",),
    ),
    Mutation(
        "finish without a proof",
        "run/run",
        "require_whole(verify(store, expected_output(self._opened), Level.FOOTERS))",
        "verify(store, expected_output(self._opened), Level.FOOTERS).totals",
        ("run/test_retry",),
    ),
    Mutation(
        "repair without a condition (disk)",
        "storage/local",
        "            if self.info(key).version != version:\n",
        "            if not version:\n",
        ("storage/test_put_if_match", "output/test_repair"),
    ),
    Mutation(
        "repair without a condition (S3)",
        "storage/s3",
        "Body=data, IfMatch=f'\"{version}\"'",
        "Body=data",
        ("storage/test_put_if_match", "output/test_repair"),
    ),
    Mutation(
        "two versions of one name",
        "storage/local",
        "            os.utime(temporary, ns=(changed_at, changed_at))\n",
        "",
        ("storage/test_put_if_match",),
    ),
    Mutation(
        "let a failed retry take an answer away",
        "output/commit",
        "        if has_answer[index] or not had_answer[position]:\n",
        "        if has_answer[index] or had_answer:\n",
        ("output/test_repair", "run/test_retry"),
    ),
    Mutation(
        "do not know a repair as one's own below a later one",
        "output/commit",
        'any(earlier["attempt"] == repair.attempt for earlier in before.repairs)',
        "before.attempt == repair.attempt",
        ("output/test_repair",),
    ),
    Mutation(
        "forget the rejects of a repaired unit",
        "output/commit",
        "        attempt=repair.attempt,\n        rejects=count_rejects(rows),\n",
        "        attempt=repair.attempt,\n",
        ("output/test_repair", "run/test_retry"),
    ),
    Mutation(
        "leave out the job after a crash between plan and job",
        "run/planning",
        "        update_job(store, job)\n",
        "        pass\n",
        ("faults/test_crash_points",),
    ),
    Mutation(
        "try again on a full disk",
        "storage/retry",
        " & retry_if_not_exception_type(NoSpace)",
        "",
        ("storage/test_store_retries",),
    ),
    Mutation(
        "give a busy store up at once",
        "storage/retry",
        "stop_after_attempt(MAX_TRIES)",
        "stop_after_attempt(1)",
        ("storage/test_store_retries",),
    ),
    Mutation(
        "company for a unit that must be alone",
        "scheduling/gate",
        "            self._changed.wait_for(lambda: not self._num_inside)\n",
        "",
        ("scheduling/test_replica_alone",),
    ),
    Mutation(
        "no watch over a hanging engine",
        "scheduling/replica",
        "        if math.isfinite(self._timeout_s):\n",
        "        if False:\n",
        ("scheduling/test_replica_alone",),
    ),
    Mutation(
        "never abort a request",
        "scheduling/scheduler",
        "(self._deadlines.values())) <= now:",
        "(self._deadlines.values())) == now:",
        ("scheduling/test_timeouts",),
    ),
)


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        for part in _COPIED:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / part, ignore=ignored)
            else:
                shutil.copy(source, folder / part)
        yield folder


def _mutate(folder: Path, mutation: Mutation) -> None:
    path = folder / "pipeline" / "tokenmill" / f"{mutation.module}.py"
    text = path.read_text()
    if text.count(mutation.before) != 1:
        raise SystemExit(f"{mutation.name}: {path.name} does not contain the text once; update it")
    path.write_text(text.replace(mutation.before, mutation.after))


def _first_failure(folder: Path, tests: Sequence[str]) -> str | None:
    """The first of the quick tests that fails in the folder, or "hangs"; None if all pass."""
    options = ("-x", "-q", "-m", "not integration", "-p", "no:cacheprovider")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(f"tests/{name}.py" for name in tests)],
            cwd=folder,
            # Ours and not the installed package, in processes that tests start too.
            env={**os.environ, "PYTHONPATH": f"{folder}/pipeline:{folder}/tests"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return None
    found = re.search(
        r"^(?:FAILED|ERROR) tests/(\S+)\.py::(.+?)(?: - |$)", done.stdout, re.MULTILINE
    )
    if found is None:
        raise SystemExit(f"the tests did not run:\n{done.stdout}{done.stderr}")
    return f"{found[1]}: {found[2]}"


def main(parts: Sequence[str]) -> int:
    """Make the mistakes whose names contain one of the parts, or all; print what noticed each."""
    chosen = [each for each in MUTATIONS if not parts or any(part in each.name for part in parts)]
    with _copy() as folder:
        tests = sorted({name for mutation in chosen for name in mutation.tests})
        failure = _first_failure(folder, tests)
        if failure is not None:
            raise SystemExit(f"without any mistake {failure} fails: fix that first")
    num_missed = 0
    print("| mistake | in | noticed by |\n|---|---|---|", flush=True)
    for mutation in chosen:
        with _copy() as folder:
            _mutate(folder, mutation)
            noticed = _first_failure(folder, mutation.tests)
        num_missed += noticed is None
        print(f"| {mutation.name} | `{mutation.module}` | {noticed or '**nothing**'} |", flush=True)
    print(f"\n{len(chosen) - num_missed} of {len(chosen)} mistakes are noticed")
    return int(num_missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
