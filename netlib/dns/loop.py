"""The event loop of the resolver's sockets: one thread, one epoll, one heap of timers.

Everything that a handler touches belongs to the loop's thread; other threads use :meth:`Loop.post`, :meth:`Loop.call` and
:meth:`Loop.join` only. A socket that belongs to a party is handled in that party's turns (:mod:`netlib.dns.turns`), any other
one at once.

Why not asyncio: a plain loop answers about 147,000 cached questions a second (107,000 to 121,000 through the rule that leads
port 53 here), where Docker's resolver answered 76,000; and this loop must decide which socket is handled next, where asyncio
calls the handlers of all ready sockets before it looks for new events. What asyncio would answer was not measured.
"""

import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

from netlib.dns.turns import WAKE_SECONDS, Handler, Party, Turns
from netlib.errors import DaemonError, DeadlineExceeded

_T = TypeVar("_T")

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
# More than the sockets that attackers can keep ready, so that each poll shows every party. To read 512 events takes 0.1 ms.
_EVENTS_PER_WAKE = 1024
_CALL_SECONDS = 10.0  # the longest wait for the loop's thread, which is busy for milliseconds at a time


class Timer:
    """An action for a later time; a cancelled timer stays in the heap without an action."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Loop:
    """Runs handlers as their descriptors become ready. A handler may be called with nothing to read and must bear that."""

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[Handler, Party | None]] = {}
        self._turns = Turns(self._handlers)
        self._timers: list[tuple[float, int, Timer]] = []
        self._serial = count()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._running = True
        self._lock = threading.Lock()  # of _calls and _running together: nobody waits for a loop that has ended
        self.watch(self._wake_fd, self._run_calls)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # --- for handlers ----------------------------------------------------------------------------------------------

    def watch(self, fd: int, handler: Handler, events: int = READABLE, party: Party | None = None) -> None:
        """Call *handler* with the events whenever *fd* is ready, in a turn of *party*."""
        self._handlers[fd] = handler, party
        self._epoll.register(fd, events)

    def rewatch(self, fd: int, events: int) -> None:
        """Change the events that *fd*, which is watched, is watched for."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch *fd* no longer; call this before *fd* is closed."""
        _, party = self._handlers.pop(fd)
        if party is not None:
            party.ready.pop(fd, None)
        self._epoll.unregister(fd)

    def again(self, fd: int) -> None:
        """Call the handler of *fd* in the next turn of its party, without events: it has work left that epoll does not see."""
        _, party = self._handlers[fd]
        assert party is not None, "only a party has turns"
        self._turns.add(party, fd, 0)

    def turn_is_over(self) -> bool:
        """Whether the handler at work should leave the rest of its work for its party's next turn."""
        return self._turns.is_over()

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Do *action* once, *seconds* from now."""
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), timer))
        return timer

    # --- for other threads -----------------------------------------------------------------------------------------

    def join(self, handlers: Mapping[int, Handler], party: Party | None = None) -> None:
        """Watch new descriptors of *party*, each with its handler, without waking the thread: all of them or none."""
        with self._lock:
            if not self._running:
                raise DaemonError("the DNS server is closed")
            try:
                for fd, handler in handlers.items():
                    self.watch(fd, handler, party=party)
            except OSError:
                for fd in handlers.keys() & self._handlers.keys():
                    del self._handlers[fd]
                    with suppress(OSError):  # the one that was refused
                        self._epoll.unregister(fd)
                raise

    def post(self, action: Callable[[], _T]) -> "Future[_T]":
        """Have the loop's thread run *action* after all earlier ones, and do not wait."""
        future: Future[_T] = Future()
        with self._lock:
            if not self._running:
                raise DaemonError("the DNS server is closed")
            self._calls.append((action, future))
            os.eventfd_write(self._wake_fd, 1)
        return future

    def call(self, action: Callable[[], _T]) -> _T:
        """Run *action* in the loop's thread; return or raise what it does."""
        future = self.post(action)
        try:
            return future.result(_CALL_SECONDS)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the DNS thread did not answer for {_CALL_SECONDS:.0f} s") from error

    @property
    def is_running(self) -> bool:
        return self._running

    def stop(self) -> None:
        """End the thread and wait for it; a no-op when it has ended."""
        with self._lock:
            if self._running:
                self._running = False
                os.eventfd_write(self._wake_fd, 1)
        self._thread.join(_CALL_SECONDS)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            turns = self._turns
            while self._running:
                for fd, events in self._epoll.poll(0 if turns else self._patience(), _EVENTS_PER_WAKE):
                    watched = self._handlers.get(fd)  # a handler of this round may have closed it
                    if watched is None:
                        continue
                    handler, party = watched
                    if party is None:
                        handler(events)
                    else:
                        turns.add(party, fd, events)
                if turns:
                    turns.run()
                if self._timers:
                    self._run_timers()
        finally:
            with self._lock:
                self._running = False
                abandoned = list(self._calls)
                self._calls.clear()
                self._epoll.close()
                os.close(self._wake_fd)
            for _, future in abandoned:
                future.set_exception(DaemonError("the DNS server was closed"))

    def _patience(self) -> float:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _run_timers(self) -> None:
        """Do due actions for a wake's time at most: 1,000 questions asked at once time out at once."""
        now = time.monotonic()
        end = now + WAKE_SECONDS
        while self._timers and self._timers[0][0] <= now < end:
            action = heapq.heappop(self._timers)[2].action
            if action is not None:
                action()
                now = time.monotonic()

    def _run_calls(self, events: int) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return
        while self._calls:
            action, future = self._calls.popleft()
            try:
                future.set_result(action())
            except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
                future.set_exception(error)
