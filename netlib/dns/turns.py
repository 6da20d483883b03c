"""Turns of the resolver's thread: which ready sockets are handled next, so that no sandbox's load delays another's answer.

One rule: time is shared by party, not by socket. Of the parties with ready sockets, the one that has used the least time lately
has the next turn; a turn is over after ``TURN_SECONDS``, and epoll is asked for new events after ``WAKE_SECONDS``::

    epoll ──> ready, by party ──> sorted by time used ──> a turn each ──> (WAKE_SECONDS later) epoll
                     ^                                       │
                     └────── not finished in its turn ───────┘
"""

from collections.abc import Callable, Mapping
from time import monotonic

__all__ = ["Handler", "Party", "Turns"]

Handler = Callable[[int], None]

# A look-up waits for one wake at most until its party's turn begins. Beside 30 pipelining connections of a neighbour the median
# look-up took 94 ms when each ready socket was handled until it was empty, and takes 0.2 ms with these.
WAKE_SECONDS = 0.002
TURN_SECONDS = 0.0005
# After so long, used time counts half: a burst of questions is soon forgotten, a flood is not.
HALF_LIFE_SECONDS = 0.1


class Party:
    """A share of the thread, with any number of sockets: a sandbox, or all strangers at a gateway together."""

    __slots__ = ("__weakref__", "connections", "counted_at", "name", "ready", "used")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: dict[int, int] = {}  # descriptors with their events, in the order of their turns
        self.connections = 0  # TCP connections that are open
        self.used = 0.0  # seconds of the thread, lately
        self.counted_at = 0.0

    def recent_use(self, now: float) -> float:
        """Seconds of the thread that the party has used lately; older ones count less."""
        self.used *= 0.5 ** ((now - self.counted_at) / HALF_LIFE_SECONDS)
        self.counted_at = now
        return self.used


class Turns:
    """The parties with ready sockets; used by the loop's thread only."""

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
        """Whether the running handler has used up its party's turn; it does at least one piece of work anyway."""
        return monotonic() >= self._end

    def run(self) -> None:
        """Give turns until no socket is ready any more, or until epoll has to be asked again."""
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
                watched = self._handlers.get(fd)  # None where another thread has just stopped watching it
                if watched is not None:
                    watched[0](events)
                now = monotonic()
            party.used += now - began
            if not party.ready:
                del self._waiting[party]
            if now >= wake_end:
                break
        self._end = 0.0
