"""``python -m benchmarks``, run by ``make bench`` in a test host: measure all subjects and print one table.

A target that is not met, or could not be compared, makes the exit status 1. All figures are left in ``benchmarks/results/``,
and a record of them (:mod:`benchmarks.record`) there or, with --keep, in ``benchmarks/records/``.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from benchmarks.measure import Row, table
from benchmarks.peers import PeerError
from benchmarks.record import RECORDS, RESULTS, RecordError, measured, record_of, recorded, write
from benchmarks.world import World, start_docker
from netlib.errors import NetlibError

SUBJECTS = ("connect", "ports", "names", "start", "teardown", "listing", "memory")
"""What a run without words measures; ``cni`` has a run of its own (``make bench-cni``)."""
_LATEST_START_SECONDS = 210.0  # the slowest subject takes less than a minute: the whole ends within five


def measure(world: World, subjects: Iterable[str], say: Callable[[str], None]) -> Iterator[Row]:
    """Yield the rows of each subject, or one row with the reason where a subject fails or no time is left for it."""
    begun = time.monotonic()
    for subject in subjects:
        if time.monotonic() - begun > _LATEST_START_SECONDS:
            yield Row(subject, None, note=f"not begun: {_LATEST_START_SECONDS:.0f} s are over")
            continue
        say(f"measuring {subject} …")
        try:
            yield from import_module(f"benchmarks.{subject}").measure(world)
        except (NetlibError, PeerError, OSError) as error:
            yield Row(subject, None, note=f"failed: {type(error).__name__}: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the given subjects, print the results and write them to a file; return the exit status."""
    given = _parser().parse_args(arguments)
    if os.environ.get("NETLIB_TESTHOST") != os.readlink("/proc/self/ns/net"):
        print(
            "benchmarks change the network; run them by `make bench`, or put netlib/testing/testhost before the command",
            file=sys.stderr,
        )
        return 2
    try:
        commit = measured(keep=given.keep)
    except RecordError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    facts: dict[str, object] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg(),
    }
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        docker, without = start_docker(stack, Path(name) / "docker")
        facts["docker"] = docker("version", "--format", "{{.Server.Version}}") if docker else without
        world = World(Path(name), part=given.part, docker=docker, without=without)
        rows = list(measure(world, given.subjects or SUBJECTS, lambda text: print(text, file=sys.stderr, flush=True)))
    facts |= {"seconds": round(time.monotonic() - begun, 1), "part": given.part, "load_after": os.getloadavg()}
    report = json.dumps({**facts, "rows": [row.as_json() for row in rows]}, indent=2)
    RESULTS.mkdir(exist_ok=True)
    kind = "cni" if given.subjects == ["cni"] else "bench"
    path = write(record_of(kind, commit, filter(None, map(recorded, rows))), RECORDS if given.keep else RESULTS)
    (RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(f"{report}\n")
    print(report if given.format == "json" else f"{table(rows)}\n\n{_closing(rows, facts)}")
    print(f"record: {path}", file=sys.stderr)
    return 1 if any(row.is_short for row in rows) else 0


def _closing(rows: Sequence[Row], facts: dict[str, object]) -> str:
    held = [row for row in rows if row.target]
    met = sum(row.met is True for row in held)
    missed = ", ".join(row.subject for row in held if row.met is False)
    compared = sum(row.met is not None for row in held)
    return (
        f"{met} of {len(held)} targets met{f'; not met: {missed}' if missed else ''}"
        f"{f'; {len(held) - compared} not compared' if compared < len(held) else ''}\n"
        + ", ".join(f"{name} {value}" for name, value in facts.items())
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure netlib beside its peers, in one run.")
    known = ", ".join(("cni", *SUBJECTS))
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"what to measure: {known} (all but cni)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="what to print (table)")
    parser.add_argument("--part", type=float, default=1.0, help="what part of the repetitions to do (1)")
    parser.add_argument("--keep", action="store_true", help="keep the record in benchmarks/records, to be committed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
