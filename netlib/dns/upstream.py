"""Questions that are not ours, asked of the servers upstream from the host's netns.

A server that failed is asked last for a while, so a dead one costs one client once. Questions in flight are limited, and the
places are shared: when all are taken, the newest question of the party that has most makes room for one of a party with fewer.
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
# A stub resolver asks again after 5 s: by then it must have our answer. Two more servers get their turn within.
TOTAL_SECONDS = 4.0
RETRY_SECONDS = 1.5
# How long an answer in the right letters may follow one in others, before the server is asked in the client's own too.
DOUBT_SECONDS = 0.05
# How long a server that failed is asked last. Long enough to spare clients, short enough to come back to the first one.
SHUN_SECONDS = 30.0
# Questions in flight. Each holds a descriptor; Docker allows 1,024 too. One sandbox cannot take them all, and where twelve take
# their hundred each, everybody's share is what is left when all have as many.
MAX_IN_FLIGHT = 1024
MAX_IN_FLIGHT_PER_SANDBOX = 100
_RESOLV_CONF_SECONDS = 1.0  # how often resolv.conf is looked at for a change, at most
_COUNT_OF_QUESTIONS = 3  # the lower byte of it, in what follows the id

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
    message_id: bytes
    question: bytes  # as it spelled it
    reply: Reply


class _Share:
    """What one party has in flight: its questions, oldest first, and how many of its clients wait for them."""

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

        The answer is NXDOMAIN where there is nobody to ask, REFUSED beyond the limits, SERVFAIL when no server answered. Equal
        questions of a party are asked once at a time, in whatever letters: so a loop of servers that ask each other ends too.
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
        """Whether one more question may be in flight for *share*; one of a party with more is refused where that is needed.

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
        """Let *question* have no place any more, nor its waiters."""
        del self._questions[question.key]
        party = question.key[0]
        share = self._shares[party]
        del share.questions[question]
        share.waiters -= len(question.waiters)
        if not share.questions:
            del self._shares[party]

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

    def close(self) -> None:
        """Drop every question in flight, unanswered."""
        for question in list(self._questions.values()):
            question.close()


class _Question:
    """One question in flight: who waits for its answer, and the attempts at getting it.

    An attempt stays open while later ones are made: a slow server's answer is still an answer.
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
        """Ask the next server; when all have failed, so has the question."""
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
        """Begin an attempt at *server*; whether that was possible."""
        kind = StreamAttempt if self._stream else Attempt
        try:
            self._attempts.append(kind(self, server, mixing=mixing))
        except OSError:  # no route, no such link, no descriptors left
            self.upstream.note_failure(server)
            return False
        return True

    def _on_silence(self) -> None:
        """The server asked last has not answered in time: ask the next one, or this one again (a datagram may be lost)."""
        last = self._attempts[-1]
        self.upstream.note_failure(last.server)
        if self._servers:
            self.ask_next()
        else:
            self._retry = self.loop.after(RETRY_SECONDS, self._on_silence)
            last.repeat()

    def on_answer(self, attempt: Attempt, response: bytes) -> None:
        """Take a checked answer; one that says "not now" only when nobody says better."""
        self.upstream.note_answer(attempt.server)
        if attempt.is_doubted:  # so the server keeps the case, and the other answer was not from there
            self.on_forgery()
        if attempt.resolves_doubt:
            self.upstream.folding.note(attempt.server)
        if response[3] & 15 in TRY_NEXT:
            self._drop(attempt)
            return
        if response[5]:  # the question as the client spelled it: it may check that too
            response = respelled(response, self.query.question)
        self._hand_on(response)

    def on_folded(self, attempt: Attempt, response: bytes) -> None:
        """Doubt an answer in other letters than the question's: its server may not keep their case, or a forger not know it.

        A moment later the server is asked in the client's spelling too. The answer is what arrives first, in the letters that
        were asked or to the second question; the doubtful one is handed on only where nothing else arrives in time.
        """
        if attempt.is_doubted:
            self.on_forgery()
            return
        attempt.is_doubted = True
        if response[3] & 15 not in TRY_NEXT:
            self._last_resort = respelled(response, self.query.question)
        if self._stream:  # one connection brings one answer
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
        """Nobody listens there, or the connection broke."""
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
        """Give the place up for a question of somebody who has fewer.

        The waiters are told later: a TCP client's next query would ask for the place before it is taken.
        """
        self.upstream.counters.refused += len(self.waiters)
        self.close()
        self.loop.after(0, partial(self._tell, next(refusal(self.query, Rcode.REFUSED).bodies)))

    def _give_up(self) -> None:
        for attempt in self._attempts:
            self.upstream.note_failure(attempt.server)
        if self._last_resort:
            self._hand_on(self._last_resort)
            return
        self.upstream.counters.failed += 1
        self._finish(next(refusal(self.query, Rcode.SERVFAIL).bodies))

    def _hand_on(self, response: bytes) -> None:
        if not self._stream and len(response) > self.query.limit:  # some servers send what was not asked for
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
        """Ask no more and forget the question; the waiters get nothing from here."""
        self._deadline.cancel()
        if self._retry is not None:
            self._retry.cancel()
        for attempt in self._attempts:
            attempt.close()
        self._attempts = []
        self.upstream.settle(self)
