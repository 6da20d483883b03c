"""The free addresses of one pool as disjoint intervals in the table ``free_range``, whose primary key has their last address.

One rule: adjacent intervals are merged at once. An address is free if and only if one row contains it, and each query is one
look-up in an index.
"""

import sqlite3
from collections.abc import Iterator

from netlib.ipamapi import Span

__all__ = ["FreeRanges", "packed", "unpacked"]


def packed(address: int) -> bytes:
    """Return the bytes that the tables hold for *address*: 16 bytes, which SQLite orders as the numbers."""
    return address.to_bytes(16, "big")


def unpacked(column: bytes) -> int:
    """Return the number that :func:`packed` encoded."""
    return int.from_bytes(column, "big")


class FreeRanges:
    """The free addresses of the pool with that row id."""

    def __init__(self, db: sqlite3.Connection, pool: int) -> None:
        self._db = db
        self._pool = pool

    def holes(self, within: Span) -> Iterator[Span]:
        """Yield the free intervals that share an address with *within*, in ascending order; change none before the end."""
        rows = self._db.execute(
            "SELECT first, last FROM free_range WHERE pool=? AND last>=? ORDER BY last", (self._pool, packed(within.first))
        )
        for first, last in rows:
            if unpacked(first) > within.last:
                return
            yield Span(unpacked(first), unpacked(last))

    def first_in(self, within: Span) -> int | None:
        """Return the lowest free address in *within*, or None."""
        hole = self._first_ending_from(within.first)
        if hole is None:
            return None
        address = max(hole.first, within.first)
        return address if address <= within.last else None

    def take(self, wanted: Span) -> bool:
        """Take all of *wanted* out of the free addresses; return False without a change when a part of it is not free."""
        hole = self._first_ending_from(wanted.last)
        if hole is None or hole.first > wanted.first:
            return False
        if hole.last > wanted.last:
            self._set_first(hole.last, wanted.last + 1)
        else:
            self._delete(hole.last)
        if hole.first < wanted.first:
            self._insert(Span(hole.first, wanted.first - 1))
        return True

    def give(self, returned: Span) -> None:
        """Add *returned*, of which no address may be free, to the free addresses."""
        left = self._first_ending_from(returned.first - 1)
        if left is not None and left.last == returned.first - 1:
            self._delete(left.last)
            returned = Span(left.first, returned.last)
        right = self._first_ending_from(returned.last + 1)
        if right is not None and right.first == returned.last + 1:
            self._set_first(right.last, returned.first)
        else:
            self._insert(returned)

    def _first_ending_from(self, address: int) -> Span | None:
        """Return the first interval whose last address is *address* or a higher one."""
        row = self._db.execute(
            "SELECT first, last FROM free_range WHERE pool=? AND last>=? ORDER BY last LIMIT 1", (self._pool, packed(address))
        ).fetchone()
        return Span(unpacked(row[0]), unpacked(row[1])) if row else None

    def _insert(self, hole: Span) -> None:
        self._db.execute(
            "INSERT INTO free_range (pool, last, first) VALUES (?,?,?)", (self._pool, packed(hole.last), packed(hole.first))
        )

    def _set_first(self, last: int, first: int) -> None:
        self._db.execute("UPDATE free_range SET first=? WHERE pool=? AND last=?", (packed(first), self._pool, packed(last)))

    def _delete(self, last: int) -> None:
        self._db.execute("DELETE FROM free_range WHERE pool=? AND last=?", (self._pool, packed(last)))
