"""DNS messages: the part of them that a server needs which answers a few types itself and forwards the rest.

One rule: any bytes at all end in a :class:`Query`, in the rcode of a refusal, or in silence; nothing raises. Sources:
RFC 1035 section 4 (messages), RFC 6891 (EDNS), RFC 7766 (TCP).
"""

from enum import IntEnum
from struct import Struct as Layout
from typing import NamedTuple

__all__ = [
    "HEADER_SIZE",
    "MAX_DATAGRAM",
    "MAX_MESSAGE",
    "MIN_DATAGRAM",
    "Edns",
    "Flag",
    "Query",
    "QueryType",
    "Rcode",
    "error_body",
    "head",
    "parse_query",
    "records",
    "respelled",
    "truncated",
    "wire_name",
]

HEADER_SIZE = 12
MIN_DATAGRAM = 512  # what a client without EDNS takes, RFC 1035 section 4.2.1
# The longest message that we receive and send by UDP: a large network's names fit, and no forged size makes us send more.
MAX_DATAGRAM = 4096
MAX_MESSAGE = 65535
_MAX_NAME = 255
_MAX_LABEL = 63
# A query has an OPT, perhaps a TSIG or SIG(0). Thousands of records would be an attack on our time.
_MAX_RECORDS = 8
_CLASS_IN = 1
_TYPE_OPT = 41

_COUNTS = Layout("!HHHHH")  # flags, then the records of the four sections
_PAIR = Layout("!HH")
_RECORD = Layout("!HHIH")  # type, class, TTL, length of the data
_OPT = Layout("!xHHBBHH")  # root name, type, size, extended rcode, version, flags, length of the data


class Flag(IntEnum):
    """Bits of the header's second word."""

    RESPONSE = 0x8000
    AUTHORITATIVE = 0x0400
    TRUNCATED = 0x0200
    RECURSION_DESIRED = 0x0100
    RECURSION_AVAILABLE = 0x0080
    CHECKING_DISABLED = 0x0010


class QueryType(IntEnum):
    """The types that are not all answered alike."""

    A = 1
    PTR = 12
    AAAA = 28
    IXFR = 251
    AXFR = 252
    ANY = 255


class Rcode(IntEnum):
    """How a question ended; ``BADVERS`` needs the four further bits of EDNS."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Edns(NamedTuple):
    """The client's OPT record: the longest answer that it takes by UDP, and whether it asks for DNSSEC."""

    size: int
    version: int
    dnssec: bool


class Query(NamedTuple):
    """One well-formed question. ``name`` is lower-cased, without the last dot; ``question`` is its section unchanged.

    With ``signed`` the message must not be changed: it has records besides the OPT, such as a TSIG (RFC 8945).
    """

    flags: int
    name: str
    qtype: int
    qclass: int
    question: bytes
    edns: Edns | None
    signed: bool = False

    @property
    def limit(self) -> int:
        """How long an answer by UDP may be, in bytes."""
        return min(max(self.edns.size, MIN_DATAGRAM), MAX_DATAGRAM) if self.edns else MIN_DATAGRAM


def parse_query(wire: bytes) -> Query | Rcode | None:
    """Read a message that should be a query.

    Return None for a message that must get no answer: it is shorter than a header, or itself a response (two servers would
    answer each other for ever). Return an rcode for one that can only be refused.
    """
    if len(wire) < HEADER_SIZE:
        return None
    flags, questions, answers, authorities, additionals = _COUNTS.unpack_from(wire, 2)
    if flags & Flag.RESPONSE:
        return None
    if flags & 0x7800:
        return Rcode.NOTIMP
    others = answers + authorities + additionals
    if questions != 1 or others > _MAX_RECORDS:
        return Rcode.FORMERR
    found = _question_name(wire)
    if found is None:
        return Rcode.FORMERR
    name, end = found
    if end + _PAIR.size > len(wire):
        return Rcode.FORMERR
    qtype, qclass = _PAIR.unpack_from(wire, end)
    end += _PAIR.size
    edns = None
    if others or end != len(wire):
        options = _read_options(wire, end, others)
        if isinstance(options, Rcode):
            return options
        edns = options
    signed = others > (1 if edns else 0)
    return Query(flags, name, qtype, qclass, bytes(wire[HEADER_SIZE:end]), edns, signed)


def _question_name(wire: bytes) -> tuple[str, int] | None:
    """The question's name as lower-case text, and where it ends; a dot inside a label is escaped: no name of ours has one."""
    labels: list[bytes] = []
    offset = HEADER_SIZE
    limit = HEADER_SIZE + _MAX_NAME
    while offset < len(wire) and offset < limit:
        length = wire[offset]
        offset += 1
        if length == 0:
            return b".".join(labels).lower().decode("latin-1"), offset
        if length > _MAX_LABEL:  # a pointer: there is no earlier name to point to
            return None
        labels.append(wire[offset : offset + length].replace(b".", b"\\."))
        offset += length
    return None


def _skip_name(wire: bytes, offset: int) -> int | None:
    while offset < len(wire):
        length = wire[offset]
        if length == 0:
            return offset + 1
        if length >= 0xC0:
            return offset + 2
        if length > _MAX_LABEL:
            return None
        offset += 1 + length
    return None


def _read_options(wire: bytes, offset: int, count: int) -> Edns | Rcode | None:
    """Walk *count* records to the end of the message; there may be one OPT, at the root (RFC 6891 section 6.1.1)."""
    edns = None
    for _ in range(count):
        end = _skip_name(wire, offset)
        if end is None or end + _RECORD.size > len(wire):
            return Rcode.FORMERR
        kind, size, extended, length = _RECORD.unpack_from(wire, end)
        if kind == _TYPE_OPT:
            if edns is not None or end != offset + 1:
                return Rcode.FORMERR
            edns = Edns(size, extended >> 16 & 0xFF, bool(extended & 0x8000))
        offset = end + _RECORD.size + length
    return edns if offset == len(wire) else Rcode.FORMERR


def wire_name(name: str) -> bytes | None:
    """*name* as labels, or None when no message could carry it (a label over 63 bytes, over 255 in all, not ASCII)."""
    if not name.isascii():
        return None
    labels = name.encode().split(b".")
    if any(not 0 < len(label) <= _MAX_LABEL for label in labels):
        return None
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return wire if len(wire) <= _MAX_NAME else None


def records(qtype: int, ttl: int, values: list[bytes]) -> list[bytes]:
    """Records of *qtype* about the name in the question, whose name is therefore a pointer to offset 12."""
    return [b"\xc0\x0c" + _RECORD.pack(qtype, _CLASS_IN, ttl, len(value)) + value for value in values]


def head(query: Query, rcode: Rcode, answers: int = 0, *, flags: int = 0) -> tuple[bytes, bytes]:
    """The parts of a response before and after its records; the sender puts the id before them."""
    flags |= Flag.RESPONSE | Flag.RECURSION_AVAILABLE | rcode & 15
    flags |= query.flags & (Flag.RECURSION_DESIRED | Flag.CHECKING_DISABLED)
    if query.edns is None:
        return _COUNTS.pack(flags, 1, answers, 0, 0) + query.question, b""
    option = _OPT.pack(_TYPE_OPT, MAX_DATAGRAM, rcode >> 4, 0, 0x8000 if query.edns.dnssec else 0, 0)
    return _COUNTS.pack(flags, 1, answers, 0, 1) + query.question, option


def error_body(wire: bytes, rcode: Rcode) -> bytes:
    """The refusal of a message that could not be read: a bare header, without the id."""
    flags = _COUNTS.unpack_from(wire, 2)[0]
    kept = flags & (0x7800 | Flag.RECURSION_DESIRED)
    return _COUNTS.pack(Flag.RESPONSE | Flag.RECURSION_AVAILABLE | kept | rcode, 0, 0, 0, 0)


def respelled(response: bytes, question: bytes) -> bytes:
    """*response* with the question section *question*, which differs from its own in the letters' case only.

    Most records have a pointer to the question as their name; those that spell the name out get the wanted spelling too.
    """
    start = HEADER_SIZE + len(question)
    name, wanted = response[HEADER_SIZE : start - _PAIR.size], question[: -_PAIR.size]
    answered = response[:HEADER_SIZE] + question + response[start:]
    if name == wanted or response.find(name, start) < 0:
        return answered
    changed, offset = bytearray(answered), start
    for _ in range(sum(_COUNTS.unpack_from(response, 2)[2:])):
        if answered.startswith(name, offset):
            changed[offset : offset + len(name)] = wanted
        end = _skip_name(answered, offset)
        if end is None or end + _RECORD.size > len(answered):
            break
        offset = end + _RECORD.size + _RECORD.unpack_from(answered, end)[3]
    return bytes(changed)


def truncated(response: bytes, query: Query) -> bytes:
    """*response* (with its id) cut to the question and marked as truncated, so that the client asks again by TCP."""
    flags = _COUNTS.unpack_from(response, 2)[0]
    return response[:2] + _COUNTS.pack(flags | Flag.TRUNCATED, 1, 0, 0, 0) + query.question
