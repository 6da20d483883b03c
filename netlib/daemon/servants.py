"""The servants of netlibd: the parts that keep working between calls (names, ports, leases, the keeper), under one contract.

Servants are started in the order of one list and stopped in reverse. Each is called with the ids of the records that changed,
is asked every few seconds to find what nobody told of, and returns its health as a sentence, which ``netlib system info``
shows. A new part (metrics, plugin sockets, restarts) is one more class in the list that :mod:`netlib.daemon.service` makes.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from netlib.errors import NetlibError

__all__ = ["ChangedRecords", "Servant", "Servants"]

_HEALTHY = "ok"


class ChangedRecords(NamedTuple):
    """The ids of records that were written or deleted, and that a servant has to read again."""

    sandboxes: Collection[str]
    networks: Collection[str]


class Servant(Protocol):
    """A part of netlibd. The main thread calls ``start`` and ``stop``; any thread may call the other methods."""

    name: str

    def start(self) -> None:
        """Begin to serve the records of the store. Raises NetlibError when netlibd must not start without this part."""
        ...

    def changed(self, change: ChangedRecords) -> Sequence[NetlibError]:
        """Read the changed records again and serve them; return the failures, which are also logged."""
        ...

    def reconcile(self, *, store_changed: bool) -> None:
        """Try again what has failed; with *store_changed* also find the records that changed without a call of ``changed``."""
        ...

    def health(self) -> str | None:
        """Return what is wrong with this part, as a sentence, or None."""
        ...

    def stop(self) -> None:
        """Serve nobody any more, and close all sockets. The kernel objects of records stay."""
        ...


class Servants:
    """All servants of one netlibd; a :class:`netlib.core.session.Watcher` for the controllers in it."""

    def __init__(self, servants: Sequence[Servant]) -> None:
        self._servants = servants
        self._started: list[Servant] = []

    def start(self) -> None:
        """Start each servant; when one raises an error, stop those that were started and raise that error."""
        try:
            for servant in self._servants:
                self._started.append(servant)
                servant.start()
        except BaseException:
            self.stop()
            raise

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Tell each servant of changed records; when *needed*, raise the first failure of any."""
        change = ChangedRecords(sandboxes, networks)
        failures = [failure for servant in self._servants for failure in servant.changed(change)]
        if failures and needed:
            raise failures[0]

    def health(self) -> dict[str, str]:
        """Return the health of each servant by its name: a sentence on what is wrong, or "ok"."""
        return {servant.name: servant.health() or _HEALTHY for servant in self._servants}

    def stop(self) -> None:
        """Stop the servants that were started, the last one first."""
        while self._started:
            self._started.pop().stop()
