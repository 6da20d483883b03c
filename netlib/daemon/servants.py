"""The servants of netlibd: each a part that outlives calls, all registered in one list, all driven by one contract.

A servant is started in the order of the list and stopped in reverse. What changes in the store is told to each; what is wrong
with one is a sentence that ``netlib system info`` shows. A new part (metrics, plugin sockets, restarts) is one class more in
the list that :mod:`netlib.daemon.service` makes.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from netlib.errors import NetlibError

__all__ = ["Change", "Servant", "Servants"]

_HEALTHY = "ok"


class Change(NamedTuple):
    """Records (ids) that were written: to be read again, for they may be new, changed or gone."""

    sandboxes: Collection[str]
    networks: Collection[str]


class Servant(Protocol):
    """A part of netlibd. Its methods are called from any thread, but for ``start`` and ``stop``, which the main one calls."""

    name: str

    def start(self) -> None:
        """Serve what the store has. Raises NetlibError when netlibd cannot do without."""
        ...

    def changed(self, change: Change) -> Sequence[NetlibError]:
        """Read these records again and serve what they say now; answer with what could not be done, which is logged too."""
        ...

    def health(self) -> str | None:
        """What is wrong, as a sentence, or None."""
        ...

    def stop(self) -> None:
        """Serve nobody any more, and close what is open. What the kernel holds for records stays as it is."""
        ...


class Servants:
    """All servants of one netlibd; a :class:`netlib.core.session.Watcher` for the controllers in it."""

    def __init__(self, servants: Sequence[Servant]) -> None:
        self._servants = servants
        self._started: list[Servant] = []

    def start(self) -> None:
        """Start each; when one cannot be started, stop those that were, and raise why."""
        try:
            for servant in self._servants:
                self._started.append(servant)
                servant.start()
        except BaseException:
            self.stop()
            raise

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Tell each of changed records; when *needed*, raise the first thing that could not be done."""
        change = Change(sandboxes, networks)
        failures = [failure for servant in self._servants for failure in servant.changed(change)]
        if failures and needed:
            raise failures[0]

    def health(self) -> dict[str, str]:
        """How each is: a sentence on what is wrong, or "ok"."""
        return {servant.name: servant.health() or _HEALTHY for servant in self._servants}

    def stop(self) -> None:
        """Stop each that was started, the last one first."""
        while self._started:
            self._started.pop().stop()
