"""The chaos run: `make chaos`, or `PYTHONPATH=tests python -m faults.chaos --seeds 5 --rounds 4`.

Rounds of kills, signals and storage faults over outputs on a real S3 server, each until its output
is finished; then `verify --deep`, and every row held against an undisturbed run's. Ends with 1 if a
row was lost, doubled, torn or different, if a driver hung, or ended without a reason.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.s3_server import load_serve

from faults import world
from faults.proxy import FaultyS3
from faults.ray_rounds import Deed, RayRound
from faults.rounds import Fate, Round, Stage, Verdict, undisturbed

# Drivers in a storm wait most of the time.
_ROUNDS_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Report:
    """The sums over all rounds."""

    seeds: list[str]
    rounds: int
    drivers: int
    kills: int
    fates: dict[str, int]
    faults: dict[str, int]
    num_faults: int
    units: int
    units_redone: int
    rows_lost: int
    rows_doubled: int
    objects_torn: int
    rows_different: int
    bytes_changed_after_success: int
    exit_codes: dict[str, int]
    seconds: float
    failures: list[str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_table(self) -> str:
        """One line a figure."""
        facts = asdict(self)
        lines = [("seeds", ", ".join(self.seeds))]
        for name, value in facts.items():
            if isinstance(value, dict):
                lines += [(f"  {key}", f"{count:,}") for key, count in sorted(value.items())]
            elif not isinstance(value, list):
                lines.append((name.replace("_", " "), f"{value:,}"))
        lines += [("FAILURE", text) for text in self.failures]
        return "\n".join(f"{name:<48} {value}" for name, value in lines) + "\n"


def report(
    seeds: Sequence[str], verdicts: Sequence[Verdict], faults: Counter[Any], seconds: float
) -> Report:
    """Sum the rounds up."""
    fates = sum((verdict.fates for verdict in verdicts), Counter())
    return Report(
        seeds=list(seeds),
        rounds=len(verdicts),
        drivers=sum(verdict.drivers for verdict in verdicts),
        kills=sum(count for fate, count in fates.items() if fate.startswith(Fate.KILL)),
        fates=dict(fates),
        faults={str(fault): count for fault, count in faults.items()},
        num_faults=faults.total() + fates.total() - fates[Fate.LIVE] - fates[Deed.SECOND],
        units=sum(verdict.units for verdict in verdicts),
        units_redone=sum(verdict.units_redone for verdict in verdicts),
        rows_lost=sum(verdict.losses.lost for verdict in verdicts),
        rows_doubled=sum(verdict.losses.doubled for verdict in verdicts),
        objects_torn=sum(verdict.losses.torn for verdict in verdicts),
        rows_different=sum(verdict.losses.different for verdict in verdicts),
        bytes_changed_after_success=sum(v.bytes_changed_after_success for v in verdicts),
        exit_codes=dict(sum((verdict.exit_codes for verdict in verdicts), Counter())),
        seconds=round(seconds, 1),
        failures=[failure for verdict in verdicts for failure in verdict.failures],
    )


@contextmanager
def bad_network(folder: Path) -> Iterator[tuple[FaultyS3, Any]]:
    """A real S3 server, at which the AWS environment points, and the proxy before it."""
    with load_serve().local_s3(folder) as server, FaultyS3(server.endpoint_url).running() as proxy:
        os.environ.update(server.environment)
        yield proxy, server


def fill_bucket(server: Any, bucket: str, corpus: Path) -> None:
    """A new bucket with the corpus in it."""
    server.create_bucket(bucket)
    for shard in sorted(corpus.glob("*.parquet")):
        server.client.put_object(Bucket=bucket, Key=f"corpus/{shard.name}", Body=shard.read_bytes())


def run(seeds: Sequence[str], rounds: int, ray_rounds: int, say: Callable[[str], None]) -> Report:
    """All rounds of all seeds: many at a time, then those over Ray one by one."""
    started_at = time.monotonic()
    verdicts: list[Verdict] = []
    # With their stores, until the proxy has ended: s3fs closes a store that is collected as garbage
    # in the loop of the thread where that happens, were it the proxy's.
    played: list[Any] = []
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as name,
        bad_network(Path(name) / "s3") as (proxy, server),
    ):

        def all_of(kind: str, count: int, at_once: int, engine: str, round_of: Any) -> None:
            folder = Path(name) / kind
            # A row that kills engines is found in seconds here, over Ray in a minute.
            world.write_corpus(folder / "corpus", poison=kind == "chaos")
            job = world.write_job(folder / "job.yaml", engine)
            stage = Stage(folder, proxy, server.environment, job, *undisturbed(folder, job))

            def one(bucket: str) -> Verdict:
                fill_bucket(server, bucket, folder / "corpus")
                round_ = round_of(stage, bucket)
                played.append(round_)
                verdict: Verdict = round_.run()
                server.delete_bucket(bucket)
                say(f"{bucket}: {verdict.drivers} drivers, {verdict.seconds} s, {verdict.losses}")
                return verdict

            buckets = [f"{kind}-{seed}-{number}" for seed in seeds for number in range(count)]
            with ThreadPoolExecutor(at_once) as pool:
                verdicts.extend(pool.map(one, buckets))

        if rounds:
            all_of("chaos", rounds, _ROUNDS_AT_ONCE, ", step_s: 0.002", Round)
        if ray_rounds:
            all_of("ray", ray_rounds, 1, ", step_s: 0.05", RayRound)
        return report(seeds, verdicts, proxy.faults, time.monotonic() - started_at)


def _print_now(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(words: Iterable[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", default="1", help="the first seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of each seed (default: %(default)s)")
    parser.add_argument(
        "--ray-rounds", type=int, default=0, help="of each seed, over Ray (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, help="write the figures there too, as JSON")
    options = parser.parse_args(None if words is None else list(words))
    seeds = [str(int(options.seed) + number) for number in range(options.seeds)]
    result = run(seeds, options.rounds, options.ray_rounds, _print_now)
    sys.stdout.write(result.to_table())
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(result.to_json())
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
