"""The default IPAM driver: subnets and addresses of this host's networks, in the local store.

A subnet is cut from its address space and an address from its subnet by the same means (:class:`FreeRanges`), inside the
transaction that writes the record they are for. Pools of different networks never overlap.

Dynamic addresses follow a cursor: the next free one after the last one given, so a released address rests until the cursor
has come around, and no neighbour's cache mistakes the newcomer for its predecessor. Fixed addresses leave the cursor alone.
"""

import ipaddress
import os
from collections.abc import Iterable, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct, field

from ipam.pools import (
    DEFAULT_BLOCKS,
    Block,
    Span,
    address_at,
    check_subnet,
    dynamic_span,
    first_fit,
    is_specific,
    merged,
    overlap,
    span,
    subnet_at,
    usable_span,
)
from ipam.ranges import FreeRanges, packed, unpacked
from netlib.errors import AddressTaken, ConfigError, Conflict, NotFound, PoolExhausted
from netlib.ipamapi import PoolRequest
from netlib.model import AddressPool, IPAddress, IPInterface, IPNetwork
from netlib.options import decoded_options

if TYPE_CHECKING:
    from netlib.store.records import Transaction

__all__ = ["DefaultIpam", "Lease", "PoolUsage"]

_GATEWAY = "gateway"
_AUXILIARY = "auxiliary:"
_ULA_KEY = "ipam.ula"


class PoolUsage(NamedTuple):
    """How full one subnet is; ``total`` leaves out what no interface may have, ``available`` is for dynamic addresses."""

    subnet: IPNetwork
    total: int
    leased: int
    available: int


class Lease(NamedTuple):
    """One leased address: ``owner`` as given at the request, ``holder`` as people call it."""

    address: IPInterface
    owner: str
    holder: str


class _Pool(NamedTuple):
    """A row of the table ``pool``."""

    id: int
    network: str
    subnet: IPNetwork
    dynamic: Span
    cursor: int

    @property
    def family(self) -> int:
        return self.subnet.version


class DefaultOptions(Struct, frozen=True):
    """``--ipam-opt`` keys of the default driver: Docker's one, which asks for what is done in any case."""

    serial: bool = field(name="com.docker.network.ipam.serial", default=True)


class DefaultIpam:
    """Pools and leases in the tables ``pool``, ``free_range`` and ``lease``."""

    name = "default"

    def __init__(self, blocks: Sequence[Block] = DEFAULT_BLOCKS) -> None:
        """Cut automatic subnets from *blocks*, in their order; without an IPv6 one, from this host's own /48."""
        self._blocks = blocks

    # --- pools -----------------------------------------------------------------------------------------------------

    def request_pool(self, tx: "Transaction", network: str, request: PoolRequest, avoid: Sequence[IPNetwork]) -> AddressPool:
        """Reserve a subnet for *network* (an id), its gateway and auxiliary addresses; see :class:`IpamDriver`.

        Without a given gateway it is the lowest address of the ip-range (or the subnet) that is no auxiliary one, as in Docker.
        """
        if not decoded_options(DefaultOptions, request.options, "IPAM driver default").serial:
            raise ConfigError(
                "IPAM driver default: com.docker.network.ipam.serial=false is not possible, for a released address must rest; "
                "leave it out"
            )
        if request.subnet is None:
            _refuse_parts_of_nothing(request)
            subnet = self._automatic_subnet(tx, request, avoid)
        else:
            subnet = request.subnet
            if subnet.version != request.family:
                raise ConfigError(f"subnet {subnet} is no IPv{request.family} subnet; choose one of that family")
            check_subnet(subnet)
            _refuse_overlap(tx, network, subnet, avoid)
        dynamic = dynamic_span(subnet, request.ip_range)
        reserved = _reservations(subnet, request)

        FreeRanges(tx.db, subnet.version).take(span(subnet))
        pool = _insert_pool(tx, network, subnet, dynamic)
        for address, owner in reserved.items():
            _lease(tx, pool, int(address), owner)
        gateway = request.gateway
        if gateway is None and request.wants_gateway:
            gateway = _lease_gateway(tx, pool)
        return AddressPool(subnet=subnet, gateway=gateway, ip_range=request.ip_range, auxiliary=request.auxiliary)

    def release_pool(self, tx: "Transaction", network: str) -> None:
        """Give back every pool of *network* with all its leases; a no-op when it has none."""
        for pool in _pools(tx, network):
            tx.db.execute("DELETE FROM pool WHERE id=?", (pool.id,))  # its leases and free ranges go with it
            FreeRanges(tx.db, pool.family).give(span(pool.subnet))

    # --- addresses -------------------------------------------------------------------------------------------------

    def request_address(
        self, tx: "Transaction", network: str, subnet: IPNetwork, owner: str, preferred: IPAddress | None = None
    ) -> IPInterface:
        """Lease *preferred*, or the next free address of the range after the last one given, to *owner* (a record's id).

        Raises NotFound (no such subnet), ConfigError (outside of it), AddressTaken (by whom), PoolExhausted.
        """
        pool = next((pool for pool in _pools(tx, network) if pool.subnet == subnet), None)
        if pool is None:
            raise NotFound(f'network "{_name(tx, network)}" has no subnet {subnet}')
        if preferred is None:
            address = _next_address(tx, pool)
            tx.db.execute("UPDATE pool SET cursor=? WHERE id=?", (packed(address + 1), pool.id))
            _lease(tx, pool, address, owner)
        else:
            address = int(preferred)
            _check_member(subnet, preferred, f'address {preferred} for network "{_name(tx, network)}"')
            if not _lease(tx, pool, address, owner):
                holder = _holder_of(tx, pool, address)
                raise AddressTaken(
                    f'address {preferred} of network "{_name(tx, network)}" is taken by {holder}; choose another one',
                    holder=holder,
                    address=str(preferred),
                    network=_name(tx, network),
                )
        return _interface(pool, address)

    def release_address(self, tx: "Transaction", network: str, owner: str) -> None:
        """Give back every lease that *owner* holds in *network*; a no-op when it holds none."""
        rows = tx.db.execute(
            "SELECT pool, address FROM lease WHERE owner=? AND pool IN (SELECT id FROM pool WHERE network=?)",
            (owner, network),
        ).fetchall()
        for pool, address in rows:
            tx.db.execute("DELETE FROM lease WHERE pool=? AND address=?", (pool, address))
            FreeRanges(tx.db, pool).give(Span(unpacked(address), unpacked(address)))

    # --- looking ---------------------------------------------------------------------------------------------------

    def usage(self, tx: "Transaction", network: str) -> list[PoolUsage]:
        """How full each subnet of *network* is."""
        return [
            PoolUsage(
                pool.subnet,
                total=usable_span(pool.subnet).size,
                leased=_leased(tx, pool, span(pool.subnet)),
                available=pool.dynamic.size - _leased(tx, pool, pool.dynamic),
            )
            for pool in _pools(tx, network)
        ]

    def leases(self, tx: "Transaction", network: str) -> list[Lease]:
        """Every leased address of *network* in rising order, subnet by subnet."""
        return [
            Lease(_interface(pool, unpacked(address)), owner, _holder_name(tx, owner))
            for pool in _pools(tx, network)
            for address, owner in tx.db.execute("SELECT address, owner FROM lease WHERE pool=? ORDER BY address", (pool.id,))
        ]

    # --- automatic subnets -----------------------------------------------------------------------------------------

    def _automatic_subnet(self, tx: "Transaction", request: PoolRequest, avoid: Sequence[IPNetwork]) -> IPNetwork:
        family = request.family
        known = (*starmap(Block, request.blocks),) or self._blocks
        blocks = [block for block in known if block.base.version == family]
        if not blocks and family == 6:
            blocks = [Block(_host_ula(tx), 64)]
        space = FreeRanges(tx.db, family)
        routes = merged(avoid, family)
        for base, prefixlen in blocks:
            whole = span(base)
            size = 1 << (base.max_prefixlen - prefixlen)
            for hole in space.holes(whole):
                first = first_fit(Span(max(hole.first, whole.first), min(hole.last, whole.last)), size, routes)
                if first is not None:
                    return subnet_at(family, first, prefixlen)
        raise PoolExhausted(
            f"no automatic IPv{family} subnet is left: networks and routes of this host cover all of "
            f"{', '.join(str(block.base) for block in blocks) or 'nothing'}; pass --subnet or remove networks that are not used"
        )


def _host_ula(tx: "Transaction") -> IPNetwork:
    """This host's own unique local /48 (RFC 4193: fd and 40 random bits), drawn once and kept in the store."""
    text = tx.meta(_ULA_KEY)
    if text is None:
        text = str(ipaddress.IPv6Network((b"\xfd" + os.urandom(5) + bytes(10), 48)))
        tx.set_meta(_ULA_KEY, text)
    return ipaddress.IPv6Network(text)


# --- what is refused ---------------------------------------------------------------------------------------------------


def _refuse_parts_of_nothing(request: PoolRequest) -> None:
    parts = (("gateway", request.gateway), ("ip-range", request.ip_range), ("auxiliary addresses", request.auxiliary))
    for what, given in parts:
        if given:
            raise ConfigError(f"the given {what} would lie in a subnet that is not chosen yet; pass --subnet too")


def _refuse_overlap(tx: "Transaction", network: str, subnet: IPNetwork, avoid: Iterable[IPNetwork]) -> None:
    wanted = span(subnet)
    # Pools are disjoint, so the first one that does not end before the subnet is the only one to look at.
    row = tx.db.execute(
        "SELECT network, subnet, first FROM pool WHERE family=? AND last>=? AND network<>'' ORDER BY last LIMIT 1",
        (subnet.version, packed(wanted.first)),
    ).fetchone()
    if row and unpacked(row[2]) <= wanted.last:
        whose = "the same network" if row[0] == network else f'network "{_name(tx, row[0])}"'
        raise Conflict(f"subnet {subnet} overlaps subnet {row[1]} of {whose}; choose another one")
    for route in avoid:
        if is_specific(route) and route.version == subnet.version and overlap(wanted, span(route)):
            raise Conflict(f"subnet {subnet} overlaps route {route} of this host; choose another one")


def _check_member(subnet: IPNetwork, address: IPAddress, what: str) -> None:
    if address not in subnet:
        raise ConfigError(f"{what} is outside subnet {subnet}; choose one inside")
    first, last = usable_span(subnet)
    if not first <= int(address) <= last:
        kind = "broadcast" if int(address) > last else "network" if subnet.version == 4 else "router anycast"
        raise ConfigError(f"{what} is the {kind} address of subnet {subnet}, which no interface may have; choose another one")


def _reservations(subnet: IPNetwork, request: PoolRequest) -> dict[IPAddress, str]:
    """The given gateway and auxiliary addresses by address, each checked."""
    reserved: dict[IPAddress, str] = {}
    if request.gateway is not None:
        _check_member(subnet, request.gateway, f"gateway {request.gateway}")
        reserved[request.gateway] = _GATEWAY
    for name, address in request.auxiliary.items():
        _check_member(subnet, address, f'auxiliary address "{name}" ({address})')
        if address in reserved:
            other = _holder_label(reserved[address])
            raise ConfigError(f'auxiliary address "{name}" ({address}) is {other} too; choose another one')
        reserved[address] = f"{_AUXILIARY}{name}"
    return reserved


# --- rows --------------------------------------------------------------------------------------------------------------


def _insert_pool(tx: "Transaction", network: str, subnet: IPNetwork, dynamic: Span) -> _Pool:
    values = (*span(subnet), *dynamic, dynamic.first)
    (number,) = tx.db.execute(
        "INSERT INTO pool (network, family, subnet, first, last, range_first, range_last, cursor)"
        " VALUES (?,?,?,?,?,?,?,?) RETURNING id",
        (network, subnet.version, str(subnet), *map(packed, values)),
    ).fetchone()
    FreeRanges(tx.db, number).give(usable_span(subnet))
    return _Pool(number, network, subnet, dynamic, dynamic.first)


def _pools(tx: "Transaction", network: str) -> list[_Pool]:
    rows = tx.db.execute("SELECT id, subnet, range_first, range_last, cursor FROM pool WHERE network=? ORDER BY id", (network,))
    return [
        _Pool(number, network, ipaddress.ip_network(subnet), Span(unpacked(first), unpacked(last)), unpacked(cursor))
        for number, subnet, first, last, cursor in rows.fetchall()
    ]


def _interface(pool: _Pool, address: int) -> IPInterface:
    return ipaddress.ip_interface((address_at(pool.family, address), pool.subnet.prefixlen))


def _lease(tx: "Transaction", pool: _Pool, address: int, owner: str) -> bool:
    if not FreeRanges(tx.db, pool.id).take(Span(address, address)):
        return False
    tx.db.execute("INSERT INTO lease (pool, address, owner) VALUES (?,?,?)", (pool.id, packed(address), owner))
    return True


def _lease_gateway(tx: "Transaction", pool: _Pool) -> IPAddress:
    address = FreeRanges(tx.db, pool.id).first_in(pool.dynamic)
    if address is None:
        raise PoolExhausted(f"no address is left for the gateway of subnet {pool.subnet}: auxiliary ones take all")
    _lease(tx, pool, address, _GATEWAY)
    return address_at(pool.family, address)


def _next_address(tx: "Transaction", pool: _Pool) -> int:
    free = FreeRanges(tx.db, pool.id)
    address = free.first_in(Span(pool.cursor, pool.dynamic.last))
    if address is None:
        address = free.first_in(pool.dynamic)
    if address is None:
        first, last = (address_at(pool.family, end) for end in pool.dynamic)
        raise PoolExhausted(
            f'network "{_name(tx, pool.network)}" has no address left: all {pool.dynamic.size} from {first} to {last} '
            f"in subnet {pool.subnet} are in use; disconnect containers or create a network with a larger subnet or ip-range",
            network=_name(tx, pool.network),
            subnet=str(pool.subnet),
        )
    return address


def _leased(tx: "Transaction", pool: _Pool, within: Span) -> int:
    (count,) = tx.db.execute(
        "SELECT count(*) FROM lease WHERE pool=? AND address BETWEEN ? AND ?",
        (pool.id, *map(packed, within)),
    ).fetchone()
    return int(count)


# --- names for people --------------------------------------------------------------------------------------------------


def _name(tx: "Transaction", record: str) -> str:
    row = tx.db.execute("SELECT name FROM record WHERE id=?", (record,)).fetchone()
    return str(row[0]) if row else record[:12]


def _holder_of(tx: "Transaction", pool: _Pool, address: int) -> str:
    (owner,) = tx.db.execute("SELECT owner FROM lease WHERE pool=? AND address=?", (pool.id, packed(address))).fetchone()
    return _holder_name(tx, owner)


def _holder_label(owner: str) -> str:
    return "the gateway" if owner == _GATEWAY else f'auxiliary address "{owner.removeprefix(_AUXILIARY)}"'


def _holder_name(tx: "Transaction", owner: str) -> str:
    if owner == _GATEWAY or owner.startswith(_AUXILIARY):
        return _holder_label(owner)
    row = tx.db.execute("SELECT kind, name, sandbox FROM record WHERE id=?", (owner,)).fetchone()
    if row is None:
        return f"{owner[:12]} (without a record)"
    kind, name, sandbox = row
    return f'the {kind} of sandbox "{_name(tx, sandbox)}"' if sandbox else f'{kind} "{name}"'
