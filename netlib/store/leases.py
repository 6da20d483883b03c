"""Pools and leases in the tables ``pool``, ``free_range`` and ``lease``; it implements :class:`netlib.ipamapi.Leases`.

:class:`FreeRanges` finds a free subnet in the address space as it finds a free address in a subnet. For this the pools with the
row ids 4 and 6 are the whole IPv4 and IPv6 address space; they belong to no network.
"""

import ipaddress
import sqlite3
from collections.abc import Iterator

from netlib.ipamapi import Holder, Leased, Pool, Span, span, usable_span
from netlib.model import AUXILIARY, GATEWAY, IPAddress, IPInterface, IPNetwork
from netlib.store.ranges import FreeRanges, packed, unpacked

__all__ = ["StoredLeases"]


class StoredLeases:
    """The pools and leases as seen and changed in one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    # --- pools -----------------------------------------------------------------------------------------------------

    def pools(self, network: str) -> list[Pool]:
        rows = self._db.execute("SELECT id, subnet, range_first, range_last FROM pool WHERE network=? ORDER BY id", (network,))
        return [
            Pool(number, network, ipaddress.ip_network(subnet), Span(unpacked(first), unpacked(last)))
            for number, subnet, first, last in rows.fetchall()
        ]

    def free_spans(self, within: IPNetwork) -> Iterator[Span]:
        return FreeRanges(self._db, within.version).holes(span(within))

    def overlapping(self, subnet: IPNetwork) -> tuple[str, IPNetwork] | None:
        # Pools are disjoint, so if any overlaps the subnet, it is the first one that ends at or after the subnet's beginning.
        row = self._db.execute(
            "SELECT network, subnet, first FROM pool WHERE family=? AND last>=? AND network<>'' ORDER BY last LIMIT 1",
            (subnet.version, packed(int(subnet.network_address))),
        ).fetchone()
        if row is None or unpacked(row[2]) > int(subnet.broadcast_address):
            return None
        return row[0], ipaddress.ip_network(row[1])

    def add_pool(self, network: str, subnet: IPNetwork, dynamic: Span) -> Pool:
        FreeRanges(self._db, subnet.version).take(span(subnet))
        values = (*span(subnet), *dynamic, dynamic.first)
        (number,) = self._db.execute(
            "INSERT INTO pool (network, family, subnet, first, last, range_first, range_last, cursor)"
            " VALUES (?,?,?,?,?,?,?,?) RETURNING id",
            (network, subnet.version, str(subnet), *map(packed, values)),
        ).fetchone()
        FreeRanges(self._db, number).give(usable_span(subnet))
        return Pool(number, network, subnet, dynamic)

    def remove_pools(self, network: str) -> None:
        for pool in self.pools(network):
            self._db.execute("DELETE FROM pool WHERE id=?", (pool.number,))  # by foreign keys its leases and free ranges too
            FreeRanges(self._db, pool.subnet.version).give(span(pool.subnet))

    # --- addresses -------------------------------------------------------------------------------------------------

    def lease(self, pool: Pool, address: IPAddress, owner: str) -> bool:
        return self._lease(pool, int(address), owner)

    def lease_next(self, pool: Pool, owner: str) -> IPAddress | None:
        (cursor,) = self._db.execute("SELECT cursor FROM pool WHERE id=?", (pool.number,)).fetchone()
        free = FreeRanges(self._db, pool.number)
        number = free.first_in(Span(unpacked(cursor), pool.dynamic.last))
        if number is None:
            number = free.first_in(pool.dynamic)
        if number is None:
            return None
        self._db.execute("UPDATE pool SET cursor=? WHERE id=?", (packed(number + 1), pool.number))
        self._lease(pool, number, owner)
        return _address(pool, number)

    def lease_first(self, pool: Pool, owner: str) -> IPAddress | None:
        number = FreeRanges(self._db, pool.number).first_in(pool.dynamic)
        if number is None:
            return None
        self._lease(pool, number, owner)
        return _address(pool, number)

    def release(self, network: str, owner: str) -> None:
        rows = self._db.execute(
            "SELECT pool, address FROM lease WHERE owner=? AND pool IN (SELECT id FROM pool WHERE network=?)",
            (owner, network),
        ).fetchall()
        for pool, address in rows:
            self._db.execute("DELETE FROM lease WHERE pool=? AND address=?", (pool, address))
            FreeRanges(self._db, pool).give(Span(unpacked(address), unpacked(address)))

    def _lease(self, pool: Pool, number: int, owner: str) -> bool:
        if not FreeRanges(self._db, pool.number).take(Span(number, number)):
            return False
        self._db.execute("INSERT INTO lease (pool, address, owner) VALUES (?,?,?)", (pool.number, packed(number), owner))
        return True

    # --- looking ---------------------------------------------------------------------------------------------------

    def holder(self, pool: Pool, address: IPAddress) -> Holder:
        row = self._db.execute(
            "SELECT owner FROM lease WHERE pool=? AND address=?", (pool.number, packed(int(address)))
        ).fetchone()
        return self._holder(row[0], pool.network) if row else Holder("", "", "nobody")

    def count(self, pool: Pool, within: Span) -> int:
        (count,) = self._db.execute(
            "SELECT count(*) FROM lease WHERE pool=? AND address BETWEEN ? AND ?", (pool.number, *map(packed, within))
        ).fetchone()
        return int(count)

    def listed(self, network: str) -> list[Leased]:
        return [
            Leased(_interface(pool, unpacked(address)), owner, str(self._holder(owner, network)))
            for pool in self.pools(network)
            for address, owner in self._db.execute(
                "SELECT address, owner FROM lease WHERE pool=? ORDER BY address", (pool.number,)
            )
        ]

    def network_name(self, network: str) -> str:
        return self._name(network)

    def fact(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return str(row[0]) if row else None

    def remember(self, key: str, value: str) -> None:
        self._db.execute("INSERT INTO meta VALUES (?,?) ON CONFLICT (key) DO UPDATE SET value=excluded.value", (key, value))

    def _name(self, record: str) -> str:
        row = self._db.execute("SELECT name FROM record WHERE id=?", (record,)).fetchone()
        return str(row[0]) if row else record[:12]

    def _holder(self, owner: str, network: str) -> Holder:
        if owner == GATEWAY:
            return Holder("gateway", self._name(network), "the gateway")
        if owner.startswith(AUXILIARY):
            name = owner.removeprefix(AUXILIARY)
            return Holder("auxiliary", name, f'auxiliary address "{name}"')
        row = self._db.execute("SELECT kind, name, sandbox FROM record WHERE id=?", (owner,)).fetchone()
        if row is None:
            return Holder("", owner[:12], f"{owner[:12]} (without a record)")
        kind, name, sandbox = row
        if sandbox:
            home = self._name(sandbox)
            return Holder("sandbox", home, f'the {kind} of sandbox "{home}"')
        return Holder(kind, name, f'{kind} "{name}"')


def _address(pool: Pool, number: int) -> IPAddress:
    return ipaddress.IPv4Address(number) if pool.subnet.version == 4 else ipaddress.IPv6Address(number)


def _interface(pool: Pool, number: int) -> IPInterface:
    return ipaddress.ip_interface((_address(pool, number), pool.subnet.prefixlen))
