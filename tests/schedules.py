"""Every order in which the steps of several verbs can happen, and how a step can end: as it should, by a failure, by a death.

Each verb is a thread that stands still before every step. One thread runs at a time, so an order is a list of choices, and each
list has one end. A run replays its list from the beginning; where two lists come to one state, they go on alike::

    run 1:   begin ── 1 ── 1 ── 2 ── 1 ── 2 ── end
                      │              ▲
    run 2:            └─── 2 ── 1 ───┘

A state is all that there is in the world and, for each verb, all that it was told so far: that is what it acts on.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from enum import Enum
from typing import NamedTuple, Protocol

__all__ = ["Choice", "Exploration", "Killed", "Process", "Run", "Way"]


class Killed(BaseException):  # nothing of ours catches it
    """Ends the thread of a verb that dies."""


class Process(threading.Thread):
    """One verb, in a thread that stands still until it is let on."""

    def __init__(self, number: int, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.next = ""  # what it does when it is let on; empty when it has ended
        self.waits_for: Hashable = None  # the lock that it takes then
        self.error: BaseException | None = None  # what it ended by
        self.is_dying = False
        self.is_failing = False  # the step that it is let on to do is to fail
        self._work = work
        self._told = 0  # a hash of all that it was told
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()

    def start(self) -> None:
        """Let it come to its first step."""
        super().start()
        self._back.acquire()

    def pause(self, step: str, waits_for: Hashable = None) -> None:
        """Stand still before *step*; called in its own thread."""
        if not self.is_dying:
            self.next, self.waits_for = step, waits_for
            self._back.release()
            self._go.acquire()
        if self.is_dying:
            raise Killed
        self.tell(step)

    def tell(self, what: Hashable) -> None:
        """Note what it gets to know; called in its own thread."""
        self._told = hash((self._told, what))

    @property
    def state(self) -> Hashable:
        """What it goes on by."""
        return self.next, self._told if self.next else repr(self.error)

    def let_on(self, *, fails: bool = False) -> None:
        """Run the next step, which may be made to fail, and pause before the following one."""
        self.is_failing = fails
        self._go.release()
        self._back.acquire()

    def die(self) -> None:
        """Let nothing of it run on but what gives its locks back, as the kernel does; a no-op when it has ended."""
        if self.next:
            self.is_dying = True
            self.let_on()

    def run(self) -> None:
        """Be the thread."""
        try:
            self._work()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever looks at the end judges it
            self.error = error
        self.next, self.waits_for = "", None
        self._back.release()


class Way(Enum):
    """How a step ends."""

    GOES_ON = "go on"
    DIES = "die before"
    FAILS = "fail to"


class Choice(NamedTuple):
    """Who is next, by the number of the process, and how its step ends."""

    process: int
    way: Way = Way.GOES_ON


class Run(Protocol):
    """One order of steps, as far as it has come."""

    def choices(self) -> list[Choice]:
        """What can be next; nothing at the end."""
        ...

    def take(self, choice: Choice) -> None:
        """Go one step on."""
        ...

    @property
    def state(self) -> Hashable:
        """All that decides how it goes on."""
        ...

    def foreseen(self, choice: Choice) -> Hashable:
        """The state that *choice* leads to, where that can be told without taking it; None else."""
        ...

    def stop(self) -> None:
        """End what stands still."""
        ...


class _State:
    """A state that a run has come to."""

    def __init__(self) -> None:
        self.left: list[Choice] = []  # what is still to be tried from here
        self.taken = Choice(0)  # what is being tried
        self.followers: list[_State] = []


class Exploration:
    """All orders of steps from one beginning."""

    def __init__(self, begin: Callable[[], Run]) -> None:
        self._begin = begin
        self._known: dict[Hashable, _State] = {}
        self.runs = 0

    def states(self) -> Iterator[Run]:
        """Yield a run at every state, once."""
        path: list[_State] = []
        while not self.runs or path:
            self.runs += 1
            run = self._begin()
            try:
                for state in path:
                    run.take(state.taken)
                yield from self._go_on(run, path)
            finally:
                run.stop()
            while path and not path[-1].left:
                path.pop()
            if path:
                path[-1].taken = path[-1].left.pop()

    def _go_on(self, run: Run, path: list[_State]) -> Iterator[Run]:
        """Go from one new state to the next, as far as there are any."""
        while True:
            key = run.state
            state = self._known.get(key)
            is_new = state is None
            if state is None:
                state = self._known[key] = _State()
                yield run
            if path:
                path[-1].followers.append(state)
            if not is_new:
                return
            for choice in reversed(run.choices()):  # tried from the end of the list
                known = self._known.get(run.foreseen(choice))
                if known is None:
                    state.left.append(choice)
                else:
                    state.followers.append(known)
            if not state.left:
                return
            path.append(state)
            state.taken = state.left.pop()
            run.take(state.taken)

    def orders(self) -> int:
        """How many orders there are: ways from the beginning to an end."""
        ways: dict[_State, int] = {}

        def ways_from(state: _State) -> int:
            if state not in ways:
                ways[state] = sum(map(ways_from, state.followers)) if state.followers else 1
            return ways[state]

        return ways_from(next(iter(self._known.values())))

    def __len__(self) -> int:
        """How many states there are."""
        return len(self._known)
