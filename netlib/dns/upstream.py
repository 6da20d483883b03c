"""Questions for other servers, asked upstream from the host's netns.

A server that failed is asked last for a while, so a dead one delays one client once. Questions in flight are limited, and their
places are shared: when all are taken, the newest question of the party with most is refused in favour of a party with fewer.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import Struct

from netlib.dns.attempts import Attempt, StreamAttempt
from netlib.dns.loop import Loop, Timer
from netlib.dns.message import HEADER_SIZE, Query, Rcode, respelled, truncated
from netlib.dns.resolvconf import HostResolver, parse_resolv_conf
from netlib.dns.resolver import refusal
from netlib.dns.spelling import TRY_NEXT, FoldingServers, lowered
from netlib.dns.turns import Party
from netlib.model import IPAddress

__all__ = ["HostServers", "Upstream"]

MAX_SERVERS = 3  # as resolv.conf(5) and Docker
# A stub resolver asks again after 5 s, so it must have our answer before. Two more servers can be asked within this time.
TOTAL_SECONDS = 4.0
RETRY_SECONDS = 1.5
# How long to wait, after an answer in another spelling, for one in the right spelling before the server is asked once more.
DOUBT_SECONDS = 0.05
# How long a server that failed is asked last: long enough to spare clients, short enough to use the first server again.
SHUN_SECONDS = 30.0
# Questions upstream at once: of all sandboxes (each question holds a descriptor; Docker allows 1,024 too), and of one sandbox.
# Where eleven or more sandboxes ask for their hundred, all of them come to equal shares.
MAX_IN_FLIGHT = 1024
MAX_IN_FLIGHT_PER_SANDBOX = 100
_RESOLV_CONF_SECONDS = 1.0  # resolv.conf is checked for changes at most so often
_COUNT_OF_QUESTIONS = 3  # offset of its lower byte behind the id

Reply = Callable[[bytes], None]


class HostServers:
    """The name servers of the host: its resolv.conf, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked = 0.0
        self._stamp: tuple[int, ...] = ()
        self._resolver = HostResolver()

    def current(self) -> tuple[IPAddress, ...]:
        """The present servers; none when there is no such file."""
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
    """Counts of forwarded questions and how they ended."""

    forwarded: int = 0
    failed: int = 0
    refused: int = 0
    forged: int = 0  # answers with a wrong id or question


class _Waiter(Struct):
    message_id: bytes
    question: bytes  # in the client's spelling
    reply: Reply


class _Share:
    """The questions of one party in flight, oldest first, and how many clients wait for them."""

    __slots__ = ("questions", "waiters")

    def __init__(self) -> None:
        self.questions: dict[_Question, None] = {}
        self.waiters = 0


_Key = tuple[Party, bytes, tuple[IPAddress, ...], bool]


class Upstream:
    """Asks, retries, and remembers which servers fail; everything runs in the loop's thread."""

    def __init__(self, loop: Loop, host: HostServers) -> None:
        self.loop = loop
        self.counters = Counters()
        self.folding = FoldingServers()
        self._host = host
        self._questions: dict[_Key, _Question] = {}
        self._shares: dict[Party, _Share] = {}
        self._shunned_until: dict[IPAddress, float] = {}

    @property
    def in_flight(self) -> int:
        return len(self._questions)

    def ask(self, wire: bytes, query: Query, servers: tuple[IPAddress, ...], party: Party, stream: bool, reply: Reply) -> None:
        """Ask *servers* (none: the host's) the query *wire*, by TCP when *stream*, and *reply* with the whole answer.

        The answer is NXDOMAIN where there are no servers, REFUSED beyond the limits, SERVFAIL when no server answered. Equal
        questions of a party, in whatever spelling, are asked once at a time: so a loop of servers that ask each other ends too.
        """
        chosen = (servers or self._host.current())[:MAX_SERVERS]
        if not chosen:
            reply(wire[:2] + next(refusal(query, Rcode.NXDOMAIN).bodies))
            return
        end = HEADER_SIZE + len(query.question)
        key = party, wire[2:HEADER_SIZE] + lowered(query.question) + wire[end:], chosen, stream
        share = self._shares.get(party) or _Share()
        question = self._questions.get(key)
        if share.waiters >= MAX_IN_FLIGHT_PER_SANDBOX or (question is None and not self._has_place(share)):
            self.counters.refused += 1
            reply(wire[:2] + next(refusal(query, Rcode.REFUSED).bodies))
            return
        self._shares[party] = share
        share.waiters += 1
        self.counters.forwarded += 1
        waiter = _Waiter(wire[:2], query.question, reply)
        if question is not None:
            question.waiters.append(waiter)
            return
        question = self._questions[key] = _Question(self, key, wire, query, self._healthy_first(chosen), waiter)
        share.questions[question] = None
        question.ask_next()

    def _has_place(self, share: _Share) -> bool:
        """Whether *share* may have one more question in flight; where all places are taken, refuse one of a party with more.

        The newest question of the party with most is refused: its client has waited least. A party with as many questions as
        another cannot take a place from it, or the two would alternate for ever.
        """
        if len(self._questions) < MAX_IN_FLIGHT:
            return True
        most = max(self._shares.values(), key=lambda other: len(other.questions))
        if len(most.questions) <= len(share.questions):
            return False
        next(reversed(most.questions)).refuse()
        return True

    def settle(self, question: "_Question") -> None:
        """Free the places of *question* and its waiters."""
        del self._questions[question.key]
        party = question.key[0]
        share = self._shares[party]
        del share.questions[question]
        share.waiters -= len(question.waiters)
        if not share.questions:
            del self._shares[party]

    def _healthy_first(self, servers: tuple[IPAddress, ...]) -> list[IPAddress]:
        """*servers* in the given order, but failed ones last. When a server's time is over, one question tries it again."""
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
        if len(self._shunned_until) > MAX_IN_FLIGHT:  # sandboxes name their own servers: drop those whose time is over
            self._shunned_until = {known: until for known, until in self._shunned_until.items() if until > now}
        self._shunned_until[server] = now + SHUN_SECONDS

    def note_answer(self, server: IPAddress) -> None:
        self._shunned_until.pop(server, None)

    def close(self) -> None:
        """Drop every question in flight, unanswered."""
        for question in list(self._questions.values()):
            question.close()


class _Question:
    """One question in flight: the clients that wait for its answer, and the attempts to get it.

    An attempt stays open while later ones are made: a slow server's answer counts as well.
    """

    def __init__(
        self, upstream: Upstream, key: _Key, wire: bytes, query: Query, servers: list[IPAddress], waiter: _Waiter
    ) -> None:
        self.upstream = upstream
        self.loop = upstream.loop
        self.key = key
        self.party, _, _, self._stream = key
        self.body = wire[2:]
        self.query = query
        self.waiters = [waiter]
        self._servers = servers
        self._attempts: list[Attempt] = []
        self._last_resort = b""
        self._deadline = self.loop.after(TOTAL_SECONDS, self._give_up)
        self._retry: Timer | None = None

    def ask_next(self) -> None:
        """Ask the next server; when all have failed, the question has failed."""
        if self._retry is not None:
            self._retry.cancel()
        while self._servers:
            server = self._servers.pop(0)
            if not self._try(server, mixing=not self.query.signed and server not in self.upstream.folding):
                continue
            self._retry = self.loop.after(RETRY_SECONDS, self._on_silence)
            return
        if not self._attempts:
            self._give_up()

    def _try(self, server: IPAddress, *, mixing: bool) -> bool:
        """Begin an attempt at *server*; return whether that was possible."""
        kind = StreamAttempt if self._stream else Attempt
        try:
            self._attempts.append(kind(self, server, mixing=mixing))
        except OSError:  # no route, no such link, no descriptors left
            self.upstream.note_failure(server)
            return False
        return True

    def _on_silence(self) -> None:
        """Ask the next server, for the last one has not answered in time, or the last one again: a datagram may be lost."""
        last = self._attempts[-1]
        self.upstream.note_failure(last.server)
        if self._servers:
            self.ask_next()
        else:
            self._retry = self.loop.after(RETRY_SECONDS, self._on_silence)
            last.repeat()

    def on_answer(self, attempt: Attempt, response: bytes) -> None:
        """Take a checked answer; after SERVFAIL and REFUSED ask the next server."""
        self.upstream.note_answer(attempt.server)
        if attempt.is_doubted:  # the server keeps the case, so the doubtful answer was not from it
            self.on_forgery()
        if attempt.resolves_doubt:
            self.upstream.folding.note(attempt.server)
        if response[3] & 15 in TRY_NEXT:
            self._drop(attempt)
            return
        if response[5]:  # in the client's spelling, which it may check as well
            response = respelled(response, self.query.question)
        self._answer(response)

    def on_folded(self, attempt: Attempt, response: bytes) -> None:
        """Put aside an answer whose letters differ in case from the question's.

        Its server ignores case, or a forger did not know the spelling. A moment later the server is asked again, in the
        client's spelling. The first answer in the right spelling, or to that second question, is used; the doubtful one only if
        no other arrives in time.
        """
        if attempt.is_doubted:
            self.on_forgery()
            return
        attempt.is_doubted = True
        if response[3] & 15 not in TRY_NEXT:
            self._last_resort = respelled(response, self.query.question)
        if self._stream:  # a connection has only one answer
            self._ask_plainly(attempt)
        else:
            self.loop.after(DOUBT_SECONDS, partial(self._ask_plainly, attempt))

    def _ask_plainly(self, doubted: Attempt) -> None:
        """Ask the server of *doubted* in the client's spelling, unless the question has been answered."""
        if doubted not in self._attempts:
            return
        if not self._try(doubted.server, mixing=False):
            self._drop(doubted)
            return
        self._attempts[-1].resolves_doubt = True
        if self._stream:
            doubted.close()
            self._attempts.remove(doubted)

    def on_forgery(self) -> None:
        """Count a message that is no answer to this question."""
        self.upstream.counters.forged += 1

    def on_failure(self, attempt: Attempt) -> None:
        """Give up *attempt*: no server listens there, or the connection broke."""
        self.upstream.note_failure(attempt.server)
        self._drop(attempt)

    def _drop(self, attempt: Attempt) -> None:
        """Close all attempts at the server of *attempt*; if that server was asked last, ask the next one."""
        server = attempt.server
        latest = self._attempts[-1].server == server
        for each in [each for each in self._attempts if each.server == server]:
            each.close()
            self._attempts.remove(each)
        if latest or not self._attempts:
            self.ask_next()

    def refuse(self) -> None:
        """Refuse this question, whose place a question of another party gets.

        The waiters are told later: at once, a TCP client's next query would take the place.
        """
        self.upstream.counters.refused += len(self.waiters)
        self.close()
        self.loop.after(0, partial(self._tell, next(refusal(self.query, Rcode.REFUSED).bodies)))

    def _give_up(self) -> None:
        for attempt in self._attempts:
            self.upstream.note_failure(attempt.server)
        if self._last_resort:
            self._answer(self._last_resort)
            return
        self.upstream.counters.failed += 1
        self._finish(next(refusal(self.query, Rcode.SERVFAIL).bodies))

    def _answer(self, response: bytes) -> None:
        if not self._stream and len(response) > self.query.limit:  # some servers send more than was asked for
            response = truncated(response, self.query)
        self._finish(response[2:])

    def _finish(self, body: bytes) -> None:
        self.close()
        self._tell(body)

    def _tell(self, body: bytes) -> None:
        for waiter in self.waiters:
            response = waiter.message_id + body
            if waiter.question != self.query.question and body[_COUNT_OF_QUESTIONS]:
                response = respelled(response, waiter.question)
            waiter.reply(response)

    def close(self) -> None:
        """Close all attempts and free the places; the waiters get no answer from here."""
        self._deadline.cancel()
        if self._retry is not None:
            self._retry.cancel()
        for attempt in self._attempts:
            attempt.close()
        self._attempts = []
        self.upstream.settle(self)
