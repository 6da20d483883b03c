"""The default IPAM driver against a model that is nothing but sets, over random histories."""

import sqlite3
from ipaddress import ip_address, ip_network
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipam.default import DefaultIpam
from ipam.pools import Block, address_at, overlap, span, usable_span
from netlib.errors import AddressTaken, Conflict, PoolExhausted
from netlib.ipamapi import PoolRequest
from netlib.model import IPNetwork
from netlib.store.records import Transaction
from netlib.store.schema import MIGRATIONS

FAMILY_BASE = {4: "10.0.0.0", 6: "fd00::"}


def memory_transaction() -> Transaction:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("PRAGMA foreign_keys=ON")
    for migration in MIGRATIONS:
        if isinstance(migration, str):  # a function changes records that are there
            db.executescript(migration)
    return Transaction(db, "boot")


def free_addresses(tx: Transaction, pool: int) -> set[int]:
    """Every address that the rows of ``free_range`` cover, after a look at their order: disjoint, and no two that touch."""
    intervals = [
        (int.from_bytes(first, "big"), int.from_bytes(last, "big"))
        for first, last in tx.db.execute("SELECT first, last FROM free_range WHERE pool=? ORDER BY last", (pool,))
    ]
    assert all(first <= last for first, last in intervals)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(intervals))
    return {address for first, last in intervals for address in range(first, last + 1)}


class Addresses(RuleBasedStateMachine):
    """One subnet of 14 or 15 addresses, of which a part is the dynamic range."""

    def __init__(self) -> None:
        super().__init__()
        self.tx = memory_transaction()
        self.ipam = DefaultIpam()
        self.held: dict[int, str] = {}
        self.last = 0
        self.number = 0

    @initialize(family=st.sampled_from([4, 6]), bits=st.integers(1, 4), start=st.integers(0, 15))
    def create(self, family: int, bits: int, start: int) -> None:
        base = int(ip_address(FAMILY_BASE[family]))
        length = 32 if family == 4 else 128
        self.subnet: IPNetwork = ip_network((base, length - 4))
        ip_range = ip_network((base + (start & -(1 << bits)), length - bits))
        usable = usable_span(self.subnet)
        self.usable = set(range(usable.first, usable.last + 1))
        self.dynamic = sorted(self.usable & {int(address) for address in ip_range})
        pool = self.ipam.request_pool(
            self.tx.leases, "n", PoolRequest(family=family, subnet=self.subnet, ip_range=ip_range), []
        )
        assert int(pool.gateway or 0) == self.dynamic[0]
        self.held[self.dynamic[0]] = "gateway"

    def owner(self) -> str:
        self.number += 1
        return f"owner{self.number}"

    @rule()
    def next_one(self) -> None:
        free = [address for address in self.dynamic if address not in self.held]
        owner = self.owner()
        try:
            got = int(self.ipam.request_address(self.tx.leases, "n", self.subnet, owner).ip)
        except PoolExhausted:
            assert free == []
            return
        assert got == min((address for address in free if address > self.last), default=free[0])
        self.held[got], self.last = owner, got

    @rule(position=st.integers(0, 15))
    def fixed(self, position: int) -> None:
        address = sorted(self.usable)[position % len(self.usable)]
        owner = self.owner()
        wanted = address_at(self.subnet.version, address)
        try:
            got = int(self.ipam.request_address(self.tx.leases, "n", self.subnet, owner, wanted).ip)
        except AddressTaken:
            assert address in self.held
            return
        assert got == address
        assert address not in self.held
        self.held[address] = owner

    @precondition(lambda self: len(self.held) > 1)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        address, owner = data.draw(st.sampled_from(sorted(self.held.items())[1:]))
        if owner != "gateway":
            self.ipam.release_address(self.tx.leases, "n", owner)
            del self.held[address]

    @invariant()
    def free_is_what_is_not_leased(self) -> None:
        if not self.held:
            return
        (pool,) = self.tx.db.execute("SELECT id FROM pool WHERE network='n'").fetchone()
        assert free_addresses(self.tx, pool) == self.usable - self.held.keys()
        assert {int(lease.address.ip): lease.owner for lease in self.tx.leases.listed("n")} == self.held
        (usage,) = self.ipam.usage(self.tx.leases, "n")
        assert usage.available == sum(address not in self.held for address in self.dynamic)

    def teardown(self) -> None:
        self.tx.db.close()


class Subnets(RuleBasedStateMachine):
    """Networks come and go in a space of 64 addresses cut by fours, beside routes of the host."""

    SPACE = ip_network("10.0.0.0/26")

    def __init__(self) -> None:
        super().__init__()
        self.tx = memory_transaction()
        self.ipam = DefaultIpam([Block(self.SPACE, 30)])
        self.networks: dict[str, IPNetwork] = {}
        self.number = 0

    @rule(start=st.integers(0, 15), bits=st.integers(2, 5), route=st.one_of(st.none(), st.integers(0, 15)), given=st.booleans())
    def create(self, start: int, bits: int, route: int | None, given: bool) -> None:
        base = int(self.SPACE.network_address)
        subnet = ip_network((base + ((4 * start) & -(1 << bits)), 32 - bits)) if given else None
        avoid = [] if route is None else [ip_network((base + 4 * route, 31))]
        obstacles = [span(network) for network in (*self.networks.values(), *avoid)]
        fours = [ip_network((base + 4 * number, 30)) for number in range(16)]
        free = [four for four in fours if not any(overlap(span(four), one) for one in obstacles)]
        self.number += 1
        name = f"network{self.number}"
        try:
            got = self.ipam.request_pool(self.tx.leases, name, PoolRequest(family=4, subnet=subnet), avoid).subnet
        except Conflict:
            assert subnet is not None
            assert any(overlap(span(subnet), one) for one in obstacles)
        except PoolExhausted:
            assert subnet is None
            assert free == []
        else:
            assert not any(overlap(span(got), one) for one in obstacles)
            assert got == (subnet or free[0])
            self.networks[name] = got

    @precondition(lambda self: self.networks)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.networks)))
        self.ipam.release_pool(self.tx.leases, name)
        del self.networks[name]

    @invariant()
    def space_is_what_no_network_has(self) -> None:
        holes = self.tx.db.execute("SELECT first, last FROM free_range WHERE pool=4 ORDER BY last").fetchall()
        taken = sorted(span(network) for network in self.networks.values())
        edges = [-1, *(edge for one in taken for edge in one), 1 << 32]
        expected = [(edges[i] + 1, edges[i + 1] - 1) for i in range(0, len(edges), 2) if edges[i] + 1 < edges[i + 1]]
        assert [(int.from_bytes(first, "big"), int.from_bytes(last, "big")) for first, last in holes] == expected

    def teardown(self) -> None:
        self.tx.db.close()


TestAddresses = Addresses.TestCase
TestAddresses.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSubnets = Subnets.TestCase
TestSubnets.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_full_pool_is_one_question_and_leaves_no_interval() -> None:
    tx, ipam = memory_transaction(), DefaultIpam()
    subnet = ipam.request_pool(tx.leases, "n", PoolRequest(family=4, subnet=ip_network("10.0.0.0/22")), []).subnet
    given = [int(ipam.request_address(tx.leases, "n", subnet, "e").ip) for _ in range(1021)]
    assert given == list(range(int(subnet.network_address) + 2, int(subnet.broadcast_address)))
    (pool,) = tx.db.execute("SELECT id FROM pool WHERE network='n'").fetchone()
    assert free_addresses(tx, pool) == set()
    ipam.release_address(tx.leases, "n", "e")
    assert tx.db.execute("SELECT count(*) FROM free_range WHERE pool=?", (pool,)).fetchone() == (1,)
    tx.db.close()
