"""Free addresses of one pool as disjoint intervals in the table ``free_range``, keyed by their end.

Its one rule: neighbours are merged at once, so an address is free if and only if exactly one row covers it, and every
question is one index look-up.
"""

import sqlite3
from collections.abc import Iterator

from netlib.ipamapi import Span

__all__ = ["FreeRanges", "packed", "unpacked"]


def packed(address: int) -> bytes:
    """An address as the tables hold it: 16 bytes that compare as numbers do."""
    return address.to_bytes(16, "big")


def unpacked(column: bytes) -> int:
    """The number that :func:`packed` wrote."""
    return int.from_bytes(column, "big")


class FreeRanges:
    """What is free in the pool with that row id."""

    def __init__(self, db: sqlite3.Connection, pool: int) -> None:
        self._db = db
        self._pool = pool

    def holes(self, within: Span) -> Iterator[Span]:
        """The free intervals that share an address with *within*, in rising order. Nothing may be changed meanwhile."""
        rows = self._db.execute(
            "SELECT first, last FROM free_range WHERE pool=? AND last>=? ORDER BY last", (self._pool, packed(within.first))
        )
        for first, last in rows:
            if unpacked(first) > within.last:
                return
            yield Span(unpacked(first), unpacked(last))

    def first_in(self, within: Span) -> int | None:
        """The lowest free address inside *within*, or None."""
        hole = self._reaching(within.first)
        if hole is None:
            return None
        address = max(hole.first, within.first)
        return address if address <= within.last else None

    def take(self, wanted: Span) -> bool:
        """Make all of *wanted* not free; False, and nothing changed, when a part of it is not free already."""
        hole = self._reaching(wanted.last)
        if hole is None or hole.first > wanted.first:
            return False
        if hole.last > wanted.last:
            self._begin_at(hole.last, wanted.last + 1)
        else:
            self._delete(hole.last)
        if hole.first < wanted.first:
            self._insert(Span(hole.first, wanted.first - 1))
        return True

    def give(self, returned: Span) -> None:
        """Make *returned*, none of which may be free, free again."""
        left = self._reaching(returned.first - 1)
        if left is not None and left.last == returned.first - 1:
            self._delete(left.last)
            returned = Span(left.first, returned.last)
        right = self._reaching(returned.last + 1)
        if right is not None and right.first == returned.last + 1:
            self._begin_at(right.last, returned.first)
        else:
            self._insert(returned)

    def _reaching(self, address: int) -> Span | None:
        """The first interval that does not end before *address*."""
        row = self._db.execute(
            "SELECT first, last FROM free_range WHERE pool=? AND last>=? ORDER BY last LIMIT 1", (self._pool, packed(address))
        ).fetchone()
        return Span(unpacked(row[0]), unpacked(row[1])) if row else None

    def _insert(self, hole: Span) -> None:
        self._db.execute(
            "INSERT INTO free_range (pool, last, first) VALUES (?,?,?)", (self._pool, packed(hole.last), packed(hole.first))
        )

    def _begin_at(self, last: int, first: int) -> None:
        self._db.execute("UPDATE free_range SET first=? WHERE pool=? AND last=?", (packed(first), self._pool, packed(last)))

    def _delete(self, last: int) -> None:
        self._db.execute("DELETE FROM free_range WHERE pool=? AND last=?", (self._pool, packed(last)))
