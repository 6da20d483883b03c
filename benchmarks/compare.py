"""``python -m benchmarks.compare COMMIT``, run by ``make bench-compare``: measure this checkout and another commit in pairs.

Both sides run at the same time, each in its own test host, and take samples in turn, so other load on the machine affects both.
A row shows the median of the pairs' ratios with its 95 % interval (from order statistics, so no distribution is assumed). A row
whose whole interval is above the limit is a regression, and makes the exit status 1.
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
from math import comb
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_SIDE = Path(__file__).with_name("side.py")
_WARM_UP = 3
_RESULTS = Path(__file__).parent / "results"


class Compared(NamedTuple):
    """One row: the milliseconds of both sides, pair by pair."""

    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """The time of the later commit divided by that of the earlier one, for each pair, in ascending order."""
        return sorted(after / before for before, after in zip(self.before, self.after, strict=True))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the median of the ratios."""
        found = self.ratios
        low, high = interval_ranks(len(found))
        return found[low], found[high]


def interval_ranks(count: int) -> tuple[int, int]:
    """Return the ranks (from 0) of the two values in a sorted series that bound its median with 95 % confidence."""
    total, outside, rank = 2**count, 0, 0
    while outside + comb(count, rank) <= 0.025 * total:
        outside += comb(count, rank)
        rank += 1
    low = max(rank - 1, 0)
    return low, count - 1 - low


class Side:
    """One of the two measuring programs (:mod:`benchmarks.side`)."""

    def __init__(self, root: Path) -> None:
        """Start the program for the netlib in the folder *root*, in a test host, with its files in memory."""
        environ = {**os.environ, "PYTHONPATH": str(root)}
        command = [str(ROOT / "netlib" / "testing" / "testhost"), sys.executable, str(_SIDE), "/run/tmp/side"]
        self._process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rows: list[str] = json.loads(self._line())

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
        verdict = "slower" if low > limit else "not shown" if high > limit else ""
        medians = (f"{statistics.median(figures):.2f} ms" for figures in (row.before, row.after))
        lines.append((row.name, *medians, f"{statistics.median(row.ratios):.3f}", f"{low:.3f}-{high:.3f}", verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the table, write the figures to ``benchmarks/results/``; return 1 for a regression."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commit", help="the commit to compare this checkout with")
    parser.add_argument("rows", nargs="*", metavar="WORD", help="only rows whose names contain one of these")
    parser.add_argument("--pairs", type=int, default=100, help="the number of samples for each row (100)")
    parser.add_argument("--limit", type=float, default=1.1, help="the ratio above which a row counts as slower (1.1)")
    given = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="compare-", dir="/run" if os.geteuid() == 0 else None) as name,
        ExitStack() as stack,
    ):
        before = stack.enter_context(_checkout(given.commit, Path(name)))
        sides = stack.enter_context(closing(Side(before))), stack.enter_context(closing(Side(ROOT)))
        wanted = [row for row in sides[0].rows if not given.rows or any(word in row for word in given.rows)]
        rows = list(measure(sides, wanted, given.pairs))
    print(table(rows, given.limit))
    _RESULTS.mkdir(exist_ok=True)
    kept = {"before": given.commit, "rows": {row.name: {"before": row.before, "after": row.after} for row in rows}}
    (_RESULTS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(kept) + "\n")
    return 1 if any(row.interval[0] > given.limit for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
