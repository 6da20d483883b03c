"""DHCP for IPv4: writing and reading messages, and the terms of a lease in them. Pure. RFC 2131, 2132, 3396, 3397, 3442.

Messages come from servers that nobody has checked: a malformed message is ignored, and a malformed option is left out.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

__all__ = ["CLIENT_PORT", "SERVER_PORT", "Kind", "Message", "Option", "Terms", "decode", "encode", "terms_of"]

CLIENT_PORT, SERVER_PORT = 68, 67
INFINITE = 0xFFFFFFFF
_BOOTREQUEST, _BOOTREPLY = 1, 2
_ETHERNET = 1
_BROADCAST_FLAG = 0x8000
_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_LEAST_BYTES = 300  # some relays drop messages that are shorter than those of BOOTP
_LONGEST_OPTION = 255
_SERVER_NAME, _BOOT_FILE = 1, 2  # bits of the option "overload": the fields that hold options too
_HOUR = 3600
_SHORTEST = 1  # seconds
_NOBODY = IPv4Address(0)


class Kind(IntEnum):
    """The kinds of messages (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7


class Option(IntEnum):
    """The options that this client sends or reads."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTERS = 3
    NAME_SERVERS = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    STATIC_ROUTES = 33
    REQUESTED_ADDRESS = 50
    LEASE_SECONDS = 51
    OVERLOAD = 52
    KIND = 53
    SERVER = 54
    PARAMETERS = 55
    REASON = 56
    RENEWAL_SECONDS = 58
    REBINDING_SECONDS = 59
    VENDOR_CLASS = 60
    CLIENT_IDENTIFIER = 61
    USER_CLASS = 77
    SEARCH = 119
    CLASSLESS_ROUTES = 121
    END = 255


class Message(NamedTuple):
    """One message; *own* is the address that the client has, *yours* the one that the server assigns."""

    kind: Kind
    transaction: int
    mac: bytes
    own: IPv4Address = _NOBODY
    yours: IPv4Address = _NOBODY
    wants_broadcast: bool = False
    options: Mapping[int, bytes] = {}

    @property
    def server(self) -> IPv4Address | None:
        """The address of the server that sent it."""
        return next(_addresses(self.options.get(Option.SERVER, b"")), None)


def encode(message: Message) -> bytes:
    """Write a client's message."""
    head = _HEADER.pack(
        _BOOTREQUEST,
        _ETHERNET,
        len(message.mac),
        0,
        message.transaction,
        0,
        _BROADCAST_FLAG if message.wants_broadcast else 0,
        message.own.packed,
        _NOBODY.packed,
        _NOBODY.packed,
        _NOBODY.packed,
        message.mac,
        b"",
        b"",
        _COOKIE,
    )
    options = {Option.KIND: bytes([message.kind]), **message.options}
    body = b"".join(_option(code, value) for code, value in options.items())
    return (head + body + bytes([Option.END])).ljust(_LEAST_BYTES, b"\0")


def _option(code: int, value: bytes) -> bytes:
    """Write an option, in several pieces if it is longer than 255 bytes (RFC 3396)."""
    pieces = [value[at : at + _LONGEST_OPTION] for at in range(0, len(value), _LONGEST_OPTION)] or [b""]
    return b"".join(bytes([code, len(piece)]) + piece for piece in pieces)


def decode(body: bytes) -> Message | None:
    """Read a server's message; None for bytes that are none."""
    if len(body) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(body)
    operation, hardware, mac_bytes, _, transaction, _, flags, own, yours, _, _, mac, server_name, boot_file, cookie = fields
    if (operation, hardware, cookie) != (_BOOTREPLY, _ETHERNET, _COOKIE) or mac_bytes > len(mac):
        return None
    options: dict[int, bytes] = {}
    _read_options(body[_HEADER.size :], options)
    overload = int.from_bytes(options.get(Option.OVERLOAD, b""), "big")
    if overload & _BOOT_FILE:  # the order is RFC 3396's
        _read_options(boot_file, options)
    if overload & _SERVER_NAME:
        _read_options(server_name, options)
    try:
        kind = Kind(int.from_bytes(options.get(Option.KIND, b""), "big"))
    except ValueError:
        return None
    return Message(
        kind, transaction, mac[:mac_bytes], IPv4Address(own), IPv4Address(yours), bool(flags & _BROADCAST_FLAG), options
    )


def _read_options(field: bytes, options: dict[int, bytes]) -> None:
    at = 0
    while at < len(field) and field[at] != Option.END:
        if field[at] == Option.PAD:
            at += 1
            continue
        if at + 2 > len(field) or at + 2 + field[at + 1] > len(field):
            return
        code, length = field[at], field[at + 1]
        options[code] = options.get(code, b"") + field[at + 2 : at + 2 + length]
        at += 2 + length


# --- the terms of a lease ------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """The terms of a lease. Durations are seconds; None stands for a lease without an end."""

    address: IPv4Interface
    server: IPv4Address
    gateway: IPv4Address | None
    routes: tuple[tuple[IPv4Network, IPv4Address], ...]  # the gateway 0.0.0.0: on the link
    name_servers: tuple[str, ...]
    domain: str
    search: tuple[str, ...]
    lease: int | None
    renewal: int
    rebinding: int


def terms_of(message: Message) -> Terms | None:
    """Read the terms in an offer or an acknowledgement; None without an address, a subnet mask or the server's address."""
    options = message.options
    mask = next(_addresses(options.get(Option.SUBNET_MASK, b"")), None)
    if message.server is None or message.yours.is_unspecified or mask is None:
        return None
    try:
        address = IPv4Interface(f"{message.yours}/{mask}")
    except ValueError:  # the option is no mask
        return None
    gateway = next(_addresses(options.get(Option.ROUTERS, b"")), None)
    lease = _seconds(options.get(Option.LEASE_SECONDS, b""), _HOUR)
    rebinding = _seconds(options.get(Option.REBINDING_SECONDS, b""), lease * 85 // 100)
    renewal = _seconds(options.get(Option.RENEWAL_SECONDS, b""), lease // 2)
    if not renewal <= rebinding <= lease:
        renewal, rebinding = lease // 2, lease * 85 // 100
    return Terms(
        address=address,
        server=message.server,
        gateway=gateway,
        routes=tuple(_routes(options, gateway)),
        name_servers=tuple(str(server) for server in _addresses(options.get(Option.NAME_SERVERS, b""))),
        domain=options.get(Option.DOMAIN_NAME, b"").rstrip(b"\0").decode(errors="replace"),
        search=tuple(_names(options.get(Option.SEARCH, b""))),
        lease=None if lease == INFINITE else lease,
        renewal=renewal,
        rebinding=rebinding,
    )


def _seconds(value: bytes, default: int) -> int:
    return max(_SHORTEST, int.from_bytes(value, "big") if len(value) == 4 else default)


def _addresses(value: bytes) -> Iterator[IPv4Address]:
    return (IPv4Address(value[at : at + 4]) for at in range(0, len(value) - 3, 4))


def _routes(options: Mapping[int, bytes], gateway: IPv4Address | None) -> Iterable[tuple[IPv4Network, IPv4Address]]:
    """Return the classless routes if there are any (RFC 3442), else the static routes and the default route."""
    found = list(_classless_routes(options.get(Option.CLASSLESS_ROUTES, b"")))
    if found:
        return found
    hops = list(_addresses(options.get(Option.STATIC_ROUTES, b"")))
    found = [(_class_of(target), router) for target, router in zip(hops[::2], hops[1::2], strict=False)]
    if gateway is not None:
        found.append((IPv4Network("0.0.0.0/0"), gateway))
    return found


def _class_of(address: IPv4Address) -> IPv4Network:
    """Return the class A, B or C network of *address*, or the address alone: a static route has no prefix length."""
    first = address.packed[0]
    length = 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 32
    return IPv4Network((address, length), strict=False)


def _classless_routes(value: bytes) -> Iterator[tuple[IPv4Network, IPv4Address]]:
    at = 0
    while at < len(value):
        length = value[at]
        octets = (length + 7) // 8
        end = at + 1 + octets + 4
        if length > 32 or end > len(value):
            return
        target = value[at + 1 : at + 1 + octets].ljust(4, b"\0")
        yield IPv4Network((target, length), strict=False), IPv4Address(value[end - 4 : end])
        at = end


def _names(value: bytes) -> Iterator[str]:
    """Yield the domain names in an option, compressed as in DNS (RFC 3397), up to the first malformed one."""
    at = 0
    while at < len(value):
        labels, at = _name(value, at)
        if not labels:
            return
        yield ".".join(label.decode(errors="replace") for label in labels)


def _name(value: bytes, start: int) -> tuple[list[bytes], int]:
    """Return the labels of the name at *start*, none for a malformed one, and the offset of the next name."""
    labels: list[bytes] = []
    at, following = start, 0
    floor = start  # each pointer must lead to a lower offset than the one before, so there is no endless loop
    while at < len(value):
        length = value[at]
        if length >= 0xC0 and at + 1 < len(value):
            target = (length & 0x3F) << 8 | value[at + 1]
            following = following or at + 2
            if target >= floor:
                break
            at = floor = target
        elif length == 0:
            return labels, following or at + 1
        elif length < 0x40 and at + 1 + length <= len(value):
            labels.append(value[at + 1 : at + 1 + length])
            at += 1 + length
        else:
            break
    return [], len(value)
