"""From a question to its answer: pure, no sockets, no clock.

The rcodes say what is true. NOERROR without records: the name is ours, but has nothing of that type. NXDOMAIN: the name is
nowhere that this sandbox may look. :class:`Forward`: not ours, somebody upstream knows. SERVFAIL is never said here: it means
that the servers upstream failed.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

from netlib.dns.message import MAX_MESSAGE, Flag, Query, QueryType, Rcode, error_body, head, parse_query, records, wire_name
from netlib.dns.zone import View

__all__ = ["TTL", "Answer", "Forward", "answer", "refusal"]

# Seconds. A container comes back with another address within one, so nobody may keep an answer: Docker's 600 (and aardvark's
# 60, until it followed) send clients to whoever holds the old address now. Asking again costs some 10 µs here.
TTL = 0
_IN, _ANY_CLASS = 1, 255
_FAMILIES = {QueryType.A: 4, QueryType.AAAA: 6}


class Answer(NamedTuple):
    """An answer of our own: ``bodies`` gives for ever what follows the id, rotated by one record each time.

    ``steady`` ones depend on nothing but the view and the query's bytes after its id.
    """

    bodies: Iterator[bytes]
    steady: bool = True


class Forward(NamedTuple):
    """Not ours: to be asked upstream."""

    query: Query


def answer(wire: bytes, view: View, *, stream: bool = False, turn: int = 0) -> Answer | Forward | None:
    """Answer the message *wire* as *view* sees the world; None when it must get no answer.

    *stream* is TCP, where nothing needs to be cut; *turn* is which of several records comes first.
    """
    query = parse_query(wire)
    if query is None:
        return None
    if isinstance(query, Rcode):
        return Answer(repeat(error_body(wire, query)), steady=False)
    if query.edns and query.edns.version:
        return refusal(query, Rcode.BADVERS)
    if query.qclass not in (_IN, _ANY_CLASS) or query.qtype in (QueryType.AXFR, QueryType.IXFR):
        return refusal(query, Rcode.REFUSED)
    found = _find(query, view)
    if found is not None:
        return _rotated(query, found, MAX_MESSAGE if stream else query.limit, turn)
    if not view.forwards:
        return refusal(query, Rcode.NXDOMAIN)
    return Forward(query)


def refusal(query: Query, rcode: Rcode) -> Answer:
    """The answer that has no records, only an rcode."""
    return Answer(repeat(b"".join(head(query, rcode))))


def _find(query: Query, view: View) -> list[bytes] | None:
    """The records that answer *query*: none when the name is ours without that type, None when it is not ours."""
    pointers = view.pointers(query.name)
    if pointers is not None:
        names = [name for name in map(wire_name, pointers) if name is not None]
        return records(QueryType.PTR, TTL, names) if query.qtype in (QueryType.PTR, QueryType.ANY) else []
    found: list[bytes] = []
    for qtype, version in _FAMILIES.items():
        addresses = view.find(query.name, version)
        if addresses is None:
            return None
        if query.qtype in (qtype, QueryType.ANY):
            found += records(qtype, TTL, [address.packed for address in addresses])
    return found


def _rotated(query: Query, found: list[bytes], limit: int, turn: int) -> Answer:
    """As many of the records as fit in *limit* bytes, TC set when some do not (RFC 2181 section 9)."""
    before, after = head(query, Rcode.NOERROR, len(found), flags=Flag.AUTHORITATIVE)
    room = limit - 2 - len(before) - len(after)
    fitting = len(found)
    if sum(map(len, found)) > room:
        fitting = room // max(map(len, found))
        before, after = head(query, Rcode.NOERROR, fitting, flags=Flag.AUTHORITATIVE | Flag.TRUNCATED)
    if len(found) < 2:
        return Answer(repeat(before + b"".join(found[:fitting]) + after))
    return Answer(_rotating(before, found, fitting, after, turn % len(found)))


def _rotating(before: bytes, found: list[bytes], fitting: int, after: bytes, start: int) -> Iterator[bytes]:
    while True:
        chosen = found[start : start + fitting]
        chosen += found[: fitting - len(chosen)]
        yield before + b"".join(chosen) + after
        start = (start + 1) % len(found)
