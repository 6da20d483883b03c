"""Questions that are not ours, asked of the servers upstream from the host's netns.

Each is asked with an id and from a port that nobody can guess, and an answer counts only when it comes from the server asked,
with that id and that question. A server that failed is asked last for a while, so a dead one costs one client once.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from netlib.dns.loop import READABLE, WRITABLE, Loop, Timer
from netlib.dns.message import HEADER_SIZE, MAX_MESSAGE, Flag, Query, Rcode, truncated
from netlib.dns.resolvconf import HostResolver, parse_resolv_conf
from netlib.dns.resolver import refusal
from netlib.kernel.descriptors import lifted
from netlib.model import IPAddress

__all__ = ["HostServers", "Upstream"]

PORT = 53
MAX_SERVERS = 3  # as resolv.conf(5) and Docker
# A stub resolver asks again after 5 s: by then it must have our answer. Two more servers get their turn within.
TOTAL_SECONDS = 4.0
RETRY_SECONDS = 1.5
# How long a server that failed is asked last. Long enough to spare clients, short enough to come back to the first one.
SHUN_SECONDS = 30.0
# Questions in flight. Each holds a descriptor; Docker allows 1,024 too. One sandbox cannot take them all.
MAX_IN_FLIGHT = 1024
MAX_IN_FLIGHT_PER_SANDBOX = 100
_RESOLV_CONF_SECONDS = 1.0  # how often resolv.conf is looked at for a change, at most
_ANSWERS_PER_WAKE = 16
_LENGTH_SIZE = 2
_TRY_NEXT = {Rcode.SERVFAIL, Rcode.REFUSED}
_MAY_OMIT_QUESTION = {Rcode.FORMERR, Rcode.NOTIMP, *_TRY_NEXT}

Reply = Callable[[bytes], None]


class HostServers:
    """The name servers of the host: its resolv.conf, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked = 0.0
        self._stamp: tuple[int, ...] = ()
        self._resolver = HostResolver()

    def current(self) -> tuple[IPAddress, ...]:
        """The servers by now; none when there is no such file."""
        now = time.monotonic()
        if now - self._checked >= _RESOLV_CONF_SECONDS or not self._checked:
            self._checked = now
            try:
                found = self._path.stat()
                stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
                if stamp != self._stamp:
                    self._resolver = parse_resolv_conf(self._path.read_text(errors="replace"))
                    self._stamp = stamp
            except OSError:
                self._resolver, self._stamp = HostResolver(), ()
        return self._resolver.servers


class Counters(Struct):
    """What happened to the questions passed on."""

    forwarded: int = 0
    failed: int = 0
    refused: int = 0
    forged: int = 0  # answers with another id or question than asked


class _Waiter(Struct):
    owner: str
    message_id: bytes
    reply: Reply


class Upstream:
    """Asks, retries, and remembers which servers fail; everything runs in the loop's thread."""

    def __init__(self, loop: Loop, host: HostServers) -> None:
        self.loop = loop
        self.counters = Counters()
        self._host = host
        self._questions: dict[tuple[bytes, tuple[IPAddress, ...], bool], _Question] = {}
        self._per_owner: dict[str, int] = {}
        self._shunned_until: dict[IPAddress, float] = {}

    @property
    def in_flight(self) -> int:
        return len(self._questions)

    def ask(self, wire: bytes, query: Query, servers: tuple[IPAddress, ...], owner: str, stream: bool, reply: Reply) -> None:
        """Ask *servers* (none: the host's) the query *wire*, by TCP when *stream*, and *reply* with the whole answer.

        The answer is NXDOMAIN where there is nobody to ask, REFUSED beyond the limits, SERVFAIL when no server answered. Equal
        questions in flight are asked once, which also ends a loop of servers that ask each other.
        """
        chosen = (servers or self._host.current())[:MAX_SERVERS]
        key = (wire[2:], chosen, stream)
        mine = self._per_owner.get(owner, 0)
        question = self._questions.get(key)
        if not chosen:
            reply(wire[:2] + next(refusal(query, Rcode.NXDOMAIN).bodies))
        elif mine >= MAX_IN_FLIGHT_PER_SANDBOX or (question is None and len(self._questions) >= MAX_IN_FLIGHT):
            self.counters.refused += 1
            reply(wire[:2] + next(refusal(query, Rcode.REFUSED).bodies))
        else:
            self._per_owner[owner] = mine + 1
            self.counters.forwarded += 1
            waiter = _Waiter(owner, wire[:2], reply)
            if question is not None:
                question.waiters.append(waiter)
                return
            question = self._questions[key] = _Question(self, wire, query, self._healthy_first(chosen), stream, waiter)
            question.ended = lambda: self._questions.pop(key)
            question.ask_next()

    def _healthy_first(self, servers: tuple[IPAddress, ...]) -> list[IPAddress]:
        """In the order given, but failed ones last. When one's time is over, this one question tries it again."""
        now = time.monotonic()
        healthy, shunned = [], []
        for server in servers:
            until = self._shunned_until.get(server, 0.0)
            if until > now:
                shunned.append(server)
                continue
            if until:
                self._shunned_until[server] = now + SHUN_SECONDS
            healthy.append(server)
        return healthy + shunned

    def note_failure(self, server: IPAddress) -> None:
        """Ask *server* last for a while."""
        now = time.monotonic()
        if len(self._shunned_until) > MAX_IN_FLIGHT:  # sandboxes name their own servers: forget what is over
            self._shunned_until = {known: until for known, until in self._shunned_until.items() if until > now}
        self._shunned_until[server] = now + SHUN_SECONDS

    def note_answer(self, server: IPAddress) -> None:
        self._shunned_until.pop(server, None)

    def settle(self, waiter: _Waiter) -> None:
        """One client has its answer: it no longer counts against its sandbox's share."""
        left = self._per_owner[waiter.owner] - 1
        if left:
            self._per_owner[waiter.owner] = left
        else:
            del self._per_owner[waiter.owner]

    def close(self) -> None:
        """Drop every question in flight, unanswered."""
        for question in list(self._questions.values()):
            question.close()


class _Question:
    """One question in flight: who waits for its answer, and the attempts at getting it.

    An attempt goes on while later ones are made: a slow server's answer is still an answer.
    """

    def __init__(
        self, upstream: Upstream, wire: bytes, query: Query, servers: list[IPAddress], stream: bool, waiter: _Waiter
    ) -> None:
        self.upstream = upstream
        self.loop = upstream.loop
        self.query = query
        self.waiters = [waiter]
        self.ended: Callable[[], object] = lambda: None
        self.body = wire[2:]
        self._servers = servers
        self._attempt: type[_Attempt] = _StreamAttempt if stream else _Attempt
        self._attempts: list[_Attempt] = []
        self._stream = stream
        self._deadline = self.loop.after(TOTAL_SECONDS, self._give_up)
        self._retry: Timer | None = None

    def ask_next(self) -> None:
        """Ask the next server; when all have failed, so has the question."""
        if self._retry is not None:
            self._retry.cancel()
        while self._servers:
            server = self._servers.pop(0)
            try:
                self._attempts.append(self._attempt(self, server))
            except OSError:  # no route, no such link, no descriptors left
                self.upstream.note_failure(server)
                continue
            self._retry = self.loop.after(RETRY_SECONDS, self._on_silence)
            return
        if not self._attempts:
            self._give_up()

    def _on_silence(self) -> None:
        """The server asked last has not answered in time: ask the next one, or this one again (a datagram may be lost)."""
        last = self._attempts[-1]
        self.upstream.note_failure(last.server)
        if self._servers:
            self.ask_next()
        else:
            self._retry = self.loop.after(RETRY_SECONDS, self._on_silence)
            last.repeat()

    def on_answer(self, attempt: "_Attempt", response: bytes) -> None:
        """Take a checked answer; one that says "not now" only when nobody says better."""
        self.upstream.note_answer(attempt.server)
        if response[3] & 15 in _TRY_NEXT:
            self._drop(attempt)
            return
        if not self._stream and len(response) > self.query.limit:  # some servers send what was not asked for
            response = truncated(response, self.query)
        counts, question = response[2:HEADER_SIZE], self.query.question
        rest = response[HEADER_SIZE + len(question) :] if response[5] else response[HEADER_SIZE:]
        if response[5]:  # the question as the client spelled it: it may check (0x20)
            rest = question + rest
        self._finish(counts + rest)

    def on_failure(self, attempt: "_Attempt") -> None:
        """Nobody listens there, or the connection broke."""
        self.upstream.note_failure(attempt.server)
        self._drop(attempt)

    def _drop(self, attempt: "_Attempt") -> None:
        latest = attempt is self._attempts[-1]
        self._attempts.remove(attempt)
        attempt.close()
        if latest or not self._attempts:
            self.ask_next()

    def _give_up(self) -> None:
        for attempt in self._attempts:
            self.upstream.note_failure(attempt.server)
        self.upstream.counters.failed += 1
        self._finish(next(refusal(self.query, Rcode.SERVFAIL).bodies))

    def _finish(self, body: bytes) -> None:
        self.close()
        for waiter in self.waiters:
            waiter.reply(waiter.message_id + body)

    def close(self) -> None:
        """Ask no more and forget the question; the waiters get nothing from here."""
        self._deadline.cancel()
        if self._retry is not None:
            self._retry.cancel()
        for attempt in self._attempts:
            attempt.close()
        self._attempts = []
        self.ended()
        for waiter in self.waiters:
            self.upstream.settle(waiter)


class _Attempt:
    """The question put to one server, by UDP, from a socket of its own: the kernel picks the port and checks the source."""

    kind = socket.SOCK_DGRAM

    def __init__(self, question: _Question, server: IPAddress) -> None:
        self.server = server
        self._question = question
        self.message = os.urandom(2) + question.body
        family = socket.AF_INET if server.version == 4 else socket.AF_INET6
        self.sock = lifted(socket.socket(family, self.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
        try:
            self._start()
        except BaseException:
            self.sock.close()
            raise

    def _start(self) -> None:
        self.sock.connect(_socket_address(self.server))
        self.sock.send(self.message)
        self._question.loop.watch(self.sock.fileno(), self._on_ready)

    def repeat(self) -> None:
        """Send again: same id, same port, so that an answer to either will do."""
        try:
            self.sock.send(self.message)
        except OSError:
            self._question.on_failure(self)

    def close(self) -> None:
        self._question.loop.forget(self.sock.fileno())
        self.sock.close()

    def _on_ready(self, events: int) -> None:
        try:
            for _ in range(_ANSWERS_PER_WAKE):
                response = self.sock.recv(MAX_MESSAGE)
                if self._take(response):
                    return
        except BlockingIOError:
            return
        except OSError:  # refused: nobody listens there
            self._question.on_failure(self)

    def _take(self, response: bytes) -> bool:
        """Hand on *response* when it answers this very question; else count it and wait on."""
        if not _answers(response, self.message, self._question.query):
            self._question.upstream.counters.forged += 1
            return False
        self._question.on_answer(self, response)
        return True


class _StreamAttempt(_Attempt):
    """The same by TCP: the message behind its length, and one answer."""

    kind = socket.SOCK_STREAM

    def _start(self) -> None:
        with suppress(BlockingIOError):  # under way: ready to write when it stands
            self.sock.connect(_socket_address(self.server))
        self._unsent = len(self.message).to_bytes(_LENGTH_SIZE, "big") + self.message
        self._received = bytearray()
        self._question.loop.watch(self.sock.fileno(), self._on_ready, WRITABLE)

    def repeat(self) -> None:
        """TCP repeats by itself."""

    def _on_ready(self, events: int) -> None:
        try:
            if self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
                if not self._unsent:
                    self._question.loop.rewatch(self.sock.fileno(), READABLE)
                return
            data = self.sock.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            self._question.on_failure(self)
            return
        self._received += data
        end = _LENGTH_SIZE + int.from_bytes(self._received[:_LENGTH_SIZE], "big")
        if len(self._received) > _LENGTH_SIZE and len(self._received) >= end:
            if not self._take(bytes(self._received[_LENGTH_SIZE:end])):
                self._question.on_failure(self)
        elif not data:
            self._question.on_failure(self)


def _answers(response: bytes, message: bytes, query: Query) -> bool:
    if len(response) < HEADER_SIZE or response[:2] != message[:2] or not response[2] & Flag.RESPONSE >> 8:
        return False
    questions = int.from_bytes(response[4:6], "big")
    if questions == 0:  # a server that could not read the question cannot repeat it
        return response[3] & 15 in _MAY_OMIT_QUESTION
    asked = query.question
    return questions == 1 and response[HEADER_SIZE : HEADER_SIZE + len(asked)].lower() == asked.lower()


def _socket_address(server: IPAddress) -> tuple[str, int] | tuple[str, int, int, int]:
    if server.version == 4:
        return (str(server), PORT)
    link = server.scope_id
    scope = 0 if link is None else int(link) if link.isdecimal() else socket.if_nametoindex(link)
    return (str(server).partition("%")[0], PORT, 0, scope)
