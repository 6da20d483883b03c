"""From a question to its answer: pure, no sockets, no clock.

NOERROR without records: the name is ours, but has no record of that type. NXDOMAIN: the name is not ours, and this sandbox may
not ask upstream. :class:`Forward`: the name is not ours, and a server upstream is to be asked. SERVFAIL is no answer of this
module: it means that the servers upstream failed.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

from netlib.dns.message import MAX_MESSAGE, Flag, Query, QueryType, Rcode, error_body, head, parse_query, records, wire_name
from netlib.dns.zone import View

__all__ = ["TTL", "Answer", "Forward", "answer", "refusal"]

# Seconds. A container may be back with another address within one, so clients must not keep an answer: with Docker's 600 (and
# aardvark's 60, before) they talk to whoever has the old address now. Asking again costs some 10 µs here.
TTL = 0
_IN, _ANY_CLASS = 1, 255
_FAMILIES = {QueryType.A: 4, QueryType.AAAA: 6}


class Answer(NamedTuple):
    """An answer of our own: ``bodies`` yields the message without its id, for ever, with the records rotated by one each time.

    A ``steady`` answer depends on the view and the query's bytes after its id only.
    """

    bodies: Iterator[bytes]
    steady: bool = True


class Forward(NamedTuple):
    """A query for a server upstream."""

    query: Query


def answer(wire: bytes, view: View, *, stream: bool = False, turn: int = 0) -> Answer | Forward | None:
    """Answer the message *wire* for a sandbox that has *view*; None when it must get no answer.

    *stream* is TCP, where no answer is too long; *turn* is the number of the first of several records.
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
    """An answer without records, only with an rcode."""
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
    """An answer with as many records as fit in *limit* bytes, and TC set when some do not (RFC 2181 section 9)."""
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
