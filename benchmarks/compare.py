"""``python -m benchmarks.compare COMMIT``, run by ``make bench-compare``: measure this checkout and another commit in pairs.

Both sides run at the same time, each in its own test host, and take samples in turn (a, b, b, a), so other load on the machine
affects both. A row shows the median of the ratios of such fours with its 95 % interval (from order statistics, so no
distribution is assumed). A row whose whole interval is above the limit is a regression, and makes the exit status 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Interval, aligned, interval_of
from benchmarks.record import RECORDS, RESULTS, RecordedRow, RecordError, git, measured, record_of, short, write

ROOT = Path(__file__).parents[1]
_SIDE = Path(__file__).with_name("side.py")
_CHECKOUTS = RESULTS
"""Not below /run or the folder of temporary files, which a test host hides: this checkout would be measured twice."""
_WARM_UP = 4
_BLOCK = 2  # pairs: a, b, b, a
LIMIT = 1.1
"""How many times as long a row may take: 10 % is more than the noise of a hundred pairs."""


class Compared(NamedTuple):
    """One row: the milliseconds of both sides, pair by pair."""

    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """The time of the later commit divided by that of the earlier one, for each two pairs, in ascending order.

        Two pairs, for in one of them a side measures right after itself, with warm caches, and in the other one after the other
        side: 2.3 and 2.9 ms for a connect. So the ratios of single pairs are of two kinds, and their median lies between them.
        """
        starts = range(0, len(self.before), _BLOCK)
        return sorted(sum(self.after[at : at + _BLOCK]) / sum(self.before[at : at + _BLOCK]) for at in starts)

    @property
    def interval(self) -> Interval:
        """Between which two ratios the true median lies, 95 times in 100."""
        return interval_of(self.ratios)

    def is_regression(self, limit: float) -> bool:
        """Whether the later commit surely takes more than *limit* times as long: the whole interval lies above it."""
        return self.interval[0] > limit

    def recorded(self, base: str) -> RecordedRow:
        """What is kept of it; *base* is the earlier commit."""
        low, high = interval_of(self.after)
        lowest, highest = self.interval
        return RecordedRow(
            name=self.name,
            unit="ms",
            count=len(self.after),
            median=short(statistics.median(self.after)),
            interval=(short(low), short(high)),
            peer=base[:7],
            peer_median=short(statistics.median(self.before)),
            ratio=short(statistics.median(self.ratios)),
            ratio_interval=(short(lowest), short(highest)),
        )


class Side:
    """One of the two measuring programs (:mod:`benchmarks.side`)."""

    def __init__(self, root: Path) -> None:
        """Start the program for the netlib in the folder *root*, in a test host, with its files in memory."""
        environ = {**os.environ, "PYTHONPATH": str(root)}
        command = [str(ROOT / "netlib" / "testing" / "testhost"), sys.executable, str(_SIDE), "/run/tmp/side"]
        self._process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        found, self.rows = Path(json.loads(self._line())), list[str](json.loads(self._line()))
        if not found.is_relative_to(root):
            self.close()
            raise SystemExit(f"the side of {root} measured the netlib in {found.parent}")

    def sample(self, row: str) -> float:
        """Take one sample of *row*, in milliseconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(row) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """Close the program's input and wait until it has cleaned up and ended."""
        self._process.communicate(timeout=120)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line: str = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with exit code {self._process.wait()}; its error message is above")
        return line


def measure(sides: tuple[Side, Side], rows: Sequence[str], pairs: int) -> Iterator[Compared]:
    """Take *pairs* of samples of each row; each side is the first of a pair in turn."""
    for row in rows:
        print(f"measuring {row} …", file=sys.stderr, flush=True)
        figures: tuple[list[float], list[float]] = ([], [])
        for turn in range(-_WARM_UP, pairs):
            order = (0, 1) if turn % 2 else (1, 0)
            found = {side: sides[side].sample(row) for side in order}
            for side in order if turn >= 0 else ():
                figures[side].append(found[side])
        yield Compared(row, tuple(figures[0]), tuple(figures[1]))


@contextmanager
def _checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Provide the files of *commit*, unpacked in *folder*."""
    target = folder / "before"
    target.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", target], input=archive, check=True)
    yield target


def table(rows: Sequence[Compared], limit: float) -> str:
    """Return the rows as text in aligned columns."""
    lines: list[tuple[str, ...]] = [("row", "before", "after", "ratio", "95 %", "")]
    for row in rows:
        low, high = row.interval
        verdict = "slower" if row.is_regression(limit) else "not shown" if high > limit else ""
        medians = (f"{statistics.median(figures):.2f} ms" for figures in (row.before, row.after))
        lines.append((row.name, *medians, f"{statistics.median(row.ratios):.3f}", f"{low:.3f}-{high:.3f}", verdict))
    return aligned(lines)


def summary(rows: Sequence[Compared], limit: float) -> str:
    """Which rows are regressions, and of which it cannot be said."""
    slower = [row for row in rows if row.is_regression(limit)]
    unsure = [row.name for row in rows if row.interval[1] > limit and row not in slower]
    lines = []
    for row in slower:
        low, high = row.interval
        lines.append(f"regression: {row.name} takes {statistics.median(row.ratios):.2f} times as long ({low:.2f}-{high:.2f})")
    lines.append(f"{len(slower) or 'no'} of {len(rows)} rows above {limit:g} times")
    if unsure:
        lines.append(f"not shown, which takes more --pairs: {'; '.join(unsure)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the table and the regressions, keep the figures; exit status 1 when there is a regression."""
    given = _parser().parse_intermixed_args(arguments)  # words may follow options
    try:
        commit = measured(keep=given.keep)
        base = git(ROOT, "rev-parse", "--verify", f"{given.commit}^{{commit}}")
    except RecordError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    RESULTS.mkdir(exist_ok=True)
    _CHECKOUTS.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="compare-", dir=_CHECKOUTS) as name,
        ExitStack() as stack,
    ):
        before = stack.enter_context(_checkout(base, Path(name)))
        sides = stack.enter_context(closing(Side(before))), stack.enter_context(closing(Side(ROOT)))
        wanted = [row for row in sides[0].rows if not given.rows or any(word in row for word in given.rows)]
        rows = list(measure(sides, wanted, given.pairs))
    print(f"{table(rows, given.limit)}\n\n{summary(rows, given.limit)}")
    regressions = tuple(row.name for row in rows if row.is_regression(given.limit))
    record = record_of(
        "compare", commit, [row.recorded(base) for row in rows], base=base, limit=given.limit, regressions=regressions
    )
    path = write(record, RECORDS if given.keep else RESULTS)
    figures = {"before": base, "rows": {row.name: {"before": row.before, "after": row.after} for row in rows}}
    (RESULTS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(figures) + "\n")
    print(f"record: {path}", file=sys.stderr)
    return 1 if regressions else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commit", help="what to compare this checkout with")
    parser.add_argument("rows", nargs="*", metavar="WORD", help="only rows whose names contain one of these")
    parser.add_argument("--pairs", type=int, default=100, help="how many samples of each (100)")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"above which a row counts as slower ({LIMIT:g})")
    parser.add_argument("--keep", action="store_true", help="keep the record in benchmarks/records, to be committed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
