"""``python -m benchmarks.history [ROW]``: the kept records of each row whose name contains ROW, the oldest first.

Without ROW, every row's newest record. A ratio is of one run, whatever machine that was on; medians are of that machine.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.measure import aligned
from benchmarks.record import KINDS, RECORDS, RESULTS, Record, RecordedRow, RecordError, read

_HEADING = ("date", "commit", "run", "of", "median", "95 %", "ratio", "95 %", "to", "machine")


def collected(folders: Iterable[Path]) -> list[Record]:
    """The records in *folders*, the oldest first. RecordError for a file that is none."""
    files = [path for folder in folders for kind in KINDS for path in folder.glob(f"*-{kind}*.json")]
    return sorted(map(read, files), key=lambda record: record.date)


def history(records: Sequence[Record], word: str = "") -> Iterator[tuple[str, list[tuple[Record, RecordedRow]]]]:
    """Each row whose name contains *word*, with its records in their order."""
    by_name: dict[str, list[tuple[Record, RecordedRow]]] = {}
    for record in records:
        for row in record.rows:
            if word in row.name:
                by_name.setdefault(row.name, []).append((record, row))
    yield from by_name.items()


def line(record: Record, row: RecordedRow) -> tuple[str, ...]:
    """One record of a row, as a line of the table."""
    low, high = row.interval
    ratio = ("", "", "")
    if row.ratio is not None:
        within = "{:.3f}-{:.3f}".format(*row.ratio_interval) if row.ratio_interval else ""
        ratio = (f"{row.ratio:.3f}", within, row.peer)
    return (
        record.date[:10],
        record.commit[:7] + ("+" if record.changed else ""),
        record.kind,
        str(row.count),
        f"{row.median:g} {row.unit}",
        f"{low:g}-{high:g}",
        *ratio,
        f"{record.cpus} CPUs, {record.kernel}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print it; exit status 1 where there is no such row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("row", nargs="?", default="", metavar="ROW", help="a part of the names of rows")
    parser.add_argument("--all", action="store_true", help="also runs that were not kept, which are in benchmarks/results")
    given = parser.parse_args(arguments)
    try:
        rows = dict(history(collected([RECORDS, RESULTS] if given.all else [RECORDS]), given.row))
    except RecordError as error:
        print(f"benchmarks.history: {error}", file=sys.stderr)
        return 2
    if not rows:
        what = f"no record has a row with {given.row!r} in its name" if given.row else "there is no record"
        print(f"benchmarks.history: {what}; `make bench KEEP=1` keeps one", file=sys.stderr)
        return 1
    if given.row:
        print("\n\n".join(f"{name}\n{aligned([_HEADING, *(line(*found) for found in each)])}" for name, each in rows.items()))
    else:
        print(
            aligned([("row", "records", *_HEADING), *((name, str(len(each)), *line(*each[-1])) for name, each in rows.items())])
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
