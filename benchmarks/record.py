"""What is kept of a run of the benchmarks: one small file, named after the commit that was measured.

A record has no single figures: of each row the median with its 95 % interval, and what it was compared with. Medians are to be
compared on one machine only; a ratio is of two programs in one run, and can be compared with that of any other run. Files are
``<commit>-<kind>.json``, of comparisons ``<commit>-compare-<base>.json``; those in ``benchmarks/records/`` are committed.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.measure import Interval, Row

__all__ = [
    "KINDS",
    "RECORDS",
    "RESULTS",
    "Commit",
    "Record",
    "RecordError",
    "RecordedRow",
    "git",
    "measured",
    "read",
    "record_of",
    "recorded",
    "short",
    "write",
]

ROOT = Path(__file__).parents[1]
RECORDS = Path(__file__).parent / "records"
RESULTS = Path(__file__).parent / "results"
KINDS = ("bench", "cni", "compare")
_SHORT = 7


class RecordError(Exception):
    """A record cannot be written or read; the message says why and what to do."""


class RecordedRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row: what was measured, and what it was compared with where there was something."""

    name: str
    unit: str
    count: int  # of figures; the interval of fewer than six is their extremes
    median: float
    interval: Interval
    peer: str = ""  # whose the next figure is: a program, or the commit of a comparison
    peer_median: float | None = None
    ratio: float | None = None
    ratio_interval: Interval | None = None  # of a comparison, whose samples are pairs


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """What is checked out: a commit, and whether files of it were changed."""

    name: str
    changed: bool

    @property
    def short(self) -> str:
        """As file names and tables have it."""
        return self.name[:_SHORT]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run."""

    kind: str  # one of KINDS
    commit: str
    date: str
    kernel: str
    python: str
    cpus: int
    changed: bool = False  # the files measured were not those of the commit
    base: str = ""  # the commit that a comparison is with
    limit: float | None = None
    regressions: tuple[str, ...] = ()
    rows: tuple[RecordedRow, ...] = ()

    @property
    def file_name(self) -> str:
        """One for each commit and kind of run, and of comparisons for each base."""
        names = (self.commit[:_SHORT], self.kind, self.base[:_SHORT])
        return f"{'-'.join(filter(None, names))}.json"


def git(root: Path, *words: str) -> str:
    """What git says about the repository in *root*; RecordError when it fails."""
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RecordError(f"git {words[0]} failed in {root}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def measured(*, keep: bool, root: Path = ROOT) -> Commit:
    """What is checked out in *root*; records do not count as changes.

    Where the record is to be kept, RecordError says that this is no commit; elsewhere a folder without git is one without name.
    """
    try:
        changes = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/records")
        found = Commit(name=git(root, "rev-parse", "HEAD"), changed=bool(changes))
    except RecordError:
        if keep:
            raise
        return Commit(name="unknown", changed=True)
    if keep and found.changed:
        raise RecordError(f"files of {found.short} were changed, so the record would be of something else: commit them first")
    return found


def record_of(kind: str, commit: Commit, rows: Iterable[RecordedRow], **more: Any) -> Record:
    """The record of a run on this machine that ends now."""
    return Record(
        kind=kind,
        commit=commit.name,
        changed=commit.changed,
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        kernel=platform.release(),
        python=platform.python_version(),
        cpus=os.cpu_count() or 0,
        rows=tuple(rows),
        **more,
    )


def recorded(row: Row) -> RecordedRow | None:
    """A row of ``python -m benchmarks``; None where nothing was measured."""
    if row.ours is None:
        return None
    compared: dict[str, Any] = {}
    if row.peer is not None and row.ratio is not None:
        compared = {"peer": row.peer_name, "peer_median": short(row.peer.median), "ratio": short(row.ratio)}
    low, high = row.ours.interval
    return RecordedRow(
        name=row.subject,
        unit=row.ours.unit,
        count=len(row.ours.values),
        median=short(row.ours.median),
        interval=(short(low), short(high)),
        **compared,
    )


def short(figure: float) -> float:
    """With four digits, which is more than any of them is worth."""
    return float(f"{figure:.4g}")


def write(record: Record, folder: Path) -> Path:
    """Write *record* into *folder*, in place of an earlier one of the same commit and kind; its path. A row is a line."""
    head = msgspec.to_builtins(record)
    rows = ",\n".join(f"    {json.dumps(row)}" for row in head.pop("rows", ()))
    text = json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "rows": [\n{rows}\n  ]\n}}\n'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.file_name
    path.write_text(text)
    return path


def read(path: Path) -> Record:
    """The record in a file; RecordError names a file that has none."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.DecodeError as error:
        raise RecordError(f"{path} is no record of a run: {error}; delete it") from error
    if record.kind not in KINDS:
        raise RecordError(f"{path} is no record of a run: its kind is {record.kind!r}, not {' or '.join(KINDS)}")
    return record
