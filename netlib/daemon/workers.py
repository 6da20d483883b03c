"""The threads in which netlibd performs verbs: started as they are needed, and never fewer than one.

One rule: all submitted work is done. Where the kernel allows no more threads (no memory, no more processes), the work waits for
an existing thread. ThreadPoolExecutor of concurrent.futures raises an error then, but leaves the work in its queue and does it.
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
    """A pool of up to *most* threads, which end with :meth:`finish`."""

    def __init__(self, most: int, name: str) -> None:
        """Start the first thread. Raises HostExhausted."""
        self._most = most
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._changing = threading.Lock()
        self._free = 0  # the number of idle threads minus the number of waiting pieces of work
        self._threads: list[threading.Thread] = []
        if not self._add():
            raise HostExhausted(f"netlibd cannot start: {NO_PROCESS}")

    def submit(self, work: Callable[[], None]) -> None:
        """Have *work* done by a thread, after the work that was submitted before."""
        with self._changing:
            self._free -= 1
            if self._free < 0 and len(self._threads) < self._most and not self._add():
                logger.warning("no thread can be made, so work waits for one of the %d that are there", len(self._threads))
        self._work.put(work)

    def finish(self) -> None:
        """Finish the submitted work, then end all threads."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _add(self) -> bool:
        thread = threading.Thread(target=self._run, name=f"{self._name}_{len(self._threads)}")
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # Python raises these when the kernel refuses clone(2)
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
