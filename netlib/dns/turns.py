"""Turns at the thread: which ready sockets are handled next, so that one sandbox's load delays no other sandbox's answer.

One rule: time is shared by party, not by socket. Of the parties that have something ready, the one that has used the least time
lately has the next turn; a turn is over after ``TURN_SECONDS``, and new events are asked for after ``WAKE_SECONDS``::

    epoll ──> ready, by party ──> sorted by time used ──> a turn each ──> (WAKE_SECONDS later) epoll
                     ^                                       │
                     └────── not finished in its turn ───────┘
"""

from collections.abc import Callable, Mapping
from time import monotonic

__all__ = ["Handler", "Party", "Turns"]

Handler = Callable[[int], None]

# A look-up waits for one wake at most before its party's turn begins. Beside 30 pipelining connections of a neighbour, the
# median look-up took 94 ms when every ready socket was served to its end, and takes 0.2 ms with these.
WAKE_SECONDS = 0.002
TURN_SECONDS = 0.0005
# Time used counts half after so long: a burst of questions is forgotten soon, a flood is not.
HALF_LIFE_SECONDS = 0.1


class Party:
    """One who shares the thread with others, through any number of sockets: a sandbox, or the strangers at a gateway."""

    __slots__ = ("__weakref__", "connections", "counted_at", "name", "ready", "used")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: dict[int, int] = {}  # descriptors with their events, in the order of their turns
        self.connections = 0  # TCP connections that are open
        self.used = 0.0  # seconds of the thread, lately
        self.counted_at = 0.0

    def recent_use(self, now: float) -> float:
        """Seconds of the thread that it had lately, older ones counting less."""
        self.used *= 0.5 ** ((now - self.counted_at) / HALF_LIFE_SECONDS)
        self.counted_at = now
        return self.used


class Turns:
    """The parties that have something ready; used by the loop's thread alone."""

    def __init__(self, handlers: Mapping[int, tuple[Handler, Party | None]]) -> None:
        self._handlers = handlers
        self._waiting: dict[Party, None] = {}
        self._end = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, party: Party, fd: int, events: int) -> None:
        """Have *fd* handled in one of the next turns of *party*."""
        ready = party.ready
        ready[fd] = ready.get(fd, 0) | events
        self._waiting[party] = None

    def is_over(self) -> bool:
        """Whether the handler at work has had its party's time; it does one piece of work all the same."""
        return monotonic() >= self._end

    def run(self) -> None:
        """Give turns until nothing is ready any more or new events are due."""
        now = monotonic()
        wake_end = now + WAKE_SECONDS
        order = list(self._waiting)
        if len(order) > 1:
            order.sort(key=lambda party: party.recent_use(now))
        for party in order:
            began, self._end = now, now + TURN_SECONDS
            while party.ready and now < self._end:
                fd = next(iter(party.ready))
                events = party.ready.pop(fd)
                watched = self._handlers.get(fd)  # None where another thread has just taken it back
                if watched is not None:
                    watched[0](events)
                now = monotonic()
            party.used += now - began
            if not party.ready:
                del self._waiting[party]
            if now >= wake_end:
                break
        self._end = 0.0
