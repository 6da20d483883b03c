"""The results of benchmarks: series of figures, rows of the table, and whether their targets are met.

One rule: a row without our figure, or without a peer's figure that its target needs, is "not compared", never met.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from math import comb
from typing import Any, NamedTuple, ParamSpec

_P = ParamSpec("_P")

Interval = tuple[float, float]


def interval_ranks(count: int) -> tuple[int, int]:
    """The ranks (from 0) of the values of a sorted series between which its median lies with 95 % confidence."""
    total, outside, rank = 2**count, 0, 0
    while outside + comb(count, rank) <= 0.025 * total:
        outside += comb(count, rank)
        rank += 1
    low = max(rank - 1, 0)
    return low, count - 1 - low


def interval_of(values: Iterable[float]) -> Interval:
    """Between which two of *values* their true median lies, 95 times in 100; of fewer than six, their extremes."""
    found = sorted(values)
    low, high = interval_ranks(len(found))
    return found[low], found[high]


class Series(NamedTuple):
    """The figures of one thing measured several times."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def interval(self) -> Interval:
        """Between which two figures the true median lies, 95 times in 100."""
        return interval_of(self.values)

    def __str__(self) -> str:
        """The median and, if there are several figures, the lowest and the highest one."""
        if len(self.values) == 1:
            return f"{_spelled(self.median)} {self.unit}"
        return f"{_spelled(self.median)} {self.unit} ({_spelled(min(self.values))}-{_spelled(max(self.values))})"

    def as_json(self) -> dict[str, Any]:
        """Return all figures, for programs."""
        return {
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def _spelled(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Target(NamedTuple):
    """A limit for our median, or for the ratio of our median to the peer's."""

    limit: float
    unit: str  # "x": a limit for the ratio
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}"


class Row(NamedTuple):
    """One line of the table: a subject, our figures, the peer's figures, and the target."""

    subject: str
    ours: Series | None
    peer_name: str = ""
    peer: Series | None = None
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Our median divided by the peer's, None where one is missing."""
        return None if self.ours is None or self.peer is None else self.ours.median / self.peer.median

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target, and where a figure that it needs is missing."""
        if self.target is None or self.ours is None:
            return None
        figure = self.ratio if self.target.unit == "x" else self.ours.median
        if figure is None:
            return None
        return figure >= self.target.limit if self.target.at_least else figure <= self.target.limit

    @property
    def verdict(self) -> str:
        """The text of the last column."""
        if self.ours is None or (self.peer_name and self.peer is None and (self.target is None or self.target.unit == "x")):
            return "not compared"
        return {True: "yes", False: "NO", None: ""}[self.met]

    @property
    def is_short(self) -> bool:
        """Whether this row has a target that is not met or not compared."""
        return self.target is not None and self.met is not True

    def as_json(self) -> dict[str, Any]:
        """Return the row for programs; ``met`` is null where it has no target or was not compared."""
        return {
            "subject": self.subject,
            "ours": self.ours.as_json() if self.ours else None,
            "peer_name": self.peer_name,
            "peer": self.peer.as_json() if self.peer else None,
            "ratio": self.ratio,
            "target": str(self.target) if self.target else None,
            "met": self.met,
            "note": self.note,
        }


def milliseconds(action: Callable[_P, object], *arguments: _P.args, **keywords: _P.kwargs) -> float:
    """Return the milliseconds that *action* takes."""
    started = time.perf_counter()
    action(*arguments, **keywords)
    return (time.perf_counter() - started) * 1000


def series(values: Iterable[float], unit: str = "ms") -> Series | None:
    """Return the figures as a series, None when there are none."""
    found = tuple(values)
    return Series(found, unit) if found else None


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text in aligned columns, each followed by its note."""
    heading = ("subject", "ours: median (min-max)", "compared with", "ratio", "target", "met")
    lines = [heading, *(_cells(row) for row in rows)]
    text = aligned(lines).split("\n")
    text.insert(1, "  ".join("-" * max(len(line[column]) for line in lines) for column in range(len(heading))))
    for number in range(len(rows) - 1, -1, -1):
        if rows[number].note:
            text.insert(number + 3, f"    {rows[number].note}")
    return "\n".join(text)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of as many cells each, as columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}" if row.ratio < 0.1 else f"{row.ratio:.2f}"
    peer = f"{row.peer_name}: {row.peer}" if row.peer else row.peer_name
    return (row.subject, str(row.ours or "-"), peer, ratio, str(row.target or ""), row.verdict)
