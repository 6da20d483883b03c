"""The threads that do netlibd's work: made as they are needed, and never fewer than one.

One rule: what was submitted is done. Where no thread can be made for it (no memory, no more processes), it waits for one that
is there; concurrent.futures would refuse it, and have it done all the same.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from netlib.errors import HostExhausted
from netlib.kernel.scarcity import NO_PROCESS

__all__ = ["Workers"]

logger = logging.getLogger(__name__)


class Workers:
    """Up to *most* threads, from now until :meth:`finish`."""

    def __init__(self, most: int, name: str) -> None:
        """Make the first one. Raises HostExhausted."""
        self._most = most
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._changing = threading.Lock()
        self._free = 0  # threads that wait, less the work that waits
        self._threads: list[threading.Thread] = []
        if not self._add():
            raise HostExhausted(f"netlibd cannot start: {NO_PROCESS}")

    def submit(self, work: Callable[[], None]) -> None:
        """Have *work* done, after what was submitted before."""
        with self._changing:
            self._free -= 1
            if self._free < 0 and len(self._threads) < self._most and not self._add():
                logger.warning("no thread can be made, so work waits for one of the %d that are there", len(self._threads))
        self._work.put(work)

    def finish(self) -> None:
        """Do what was submitted, then end every thread."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _add(self) -> bool:
        thread = threading.Thread(target=self._run, name=f"{self._name}_{len(self._threads)}")
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # Python's word for a clone(2) that the kernel refused
            return False
        self._threads.append(thread)
        self._free += 1
        return True

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:  # one request's bug must not end a thread that serves all
                logger.exception("a worker failed")
            with self._changing:
                self._free += 1
