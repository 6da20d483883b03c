"""What changes by itself: a thread that looks after it.

It puts our firewall back when others flush it, looks again when something of the run folder is deleted, and finds changes in
the store that nobody told of (their teller was killed). At the start it clears away ended containers and sees that every
sandbox's redirect leads to its resolver. Tasks are due at a time; an event only makes one due sooner.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path

from netlib.core.controller import Controller
from netlib.daemon.leases import DhcpLeases
from netlib.daemon.rules import restore_allowances, restore_table
from netlib.daemon.servants import Change
from netlib.daemon.serving import Mover, Serving
from netlib.errors import NetlibError
from netlib.firewall.backend import Notice, backend, firewall
from netlib.firewall.objects import DnsRedirect
from netlib.kernel import inotify
from netlib.model import Phase

__all__ = ["Keeper"]

_TABLE_SECONDS = 0.05  # a flush is many events in a few milliseconds
_IN_FLIGHT_SECONDS = 1.0  # by then, what was being made while the table was gone is there
_FOREIGN_SECONDS = 0.5
_FOREIGN_PAUSE_SECONDS = 5.0  # others may rewrite their rules all day, and to look costs a listing of theirs
_SWEEP_SECONDS = 5.0
_EVENT_BYTES = 1 << 14

logger = logging.getLogger(__name__)


class Keeper:
    """The servant that looks after what changes by itself, in a thread of its own."""

    name = "keeper"

    def __init__(
        self,
        controller: Callable[[], Controller],
        serving: Serving,
        moved: Mover,
        leases: DhcpLeases,
        run_dir: Path,
        check_place: Callable[[], None],
    ) -> None:
        """*check_place* is called when *run_dir* loses something; *moved* where a redirect leads past its resolver."""
        self._make_controller = controller
        self._serving = serving
        self._moved = moved
        self._leases = leases
        self._run_dir = run_dir
        self._check_place = check_place
        self._sources: dict[int, Callable[[], None]] = {}
        self._due: dict[Callable[[], None], float] = {}
        self._foreign_done = 0.0
        self._version = -1
        self._stopping = False
        self._troubles: dict[str, str] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="netlibd-keeper")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def changed(self, change: Change) -> tuple[NetlibError, ...]:
        """Nothing: what it looks after is others' doing."""
        return ()

    def health(self) -> str | None:
        """What it cannot watch, and which of its tasks has failed since it last succeeded."""
        return "; ".join(list(self._troubles.values())) or None

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        self._controller = self._make_controller()
        self._in(0, self._warm)
        self._in(0, self._finish_containers)
        self._in(0, self._check_redirects)
        self._in(0, self._warm_plugins)
        self._in(_SWEEP_SECONDS, self._sweep)
        with ExitStack() as open_sources:
            for watch in (self._watch_firewall, self._watch_place):
                try:
                    watch(open_sources)
                except NetlibError as error:  # without nf_tables there is no table of ours to watch
                    logger.warning("%s", error)
                    self._troubles[watch.__name__] = str(error)
            self._loop()

    def _watch_firewall(self, open_sources: ExitStack) -> None:
        events = open_sources.enter_context(closing(backend().events()))
        self._sources[events.fileno()] = lambda: self._notice(events.read())
        self._in(0, self._restore_table)  # it may have been flushed while no netlibd was there

    def _watch_place(self, open_sources: ExitStack) -> None:
        self._in(0, self._check_place)  # what has gone by now is not told
        fd = inotify.watch(self._run_dir, inotify.LOST)
        open_sources.callback(os.close, fd)

        def look() -> None:
            os.read(fd, _EVENT_BYTES)
            self._check_place()

        self._sources[fd] = look

    def _loop(self) -> None:
        poller = select.poll()
        for fd in (self._wake, *self._sources):
            poller.register(fd, select.POLLIN)
        while not self._stopping:
            patience = min(self._due.values()) - time.monotonic()
            for fd, _ in poller.poll(max(0, patience) * 1000):
                if fd in self._sources:
                    self._sources[fd]()
            now = time.monotonic()
            for task in [task for task, due in self._due.items() if due <= now]:
                del self._due[task]
                self._do(task)

    def _in(self, seconds: float, task: Callable[[], None]) -> None:
        """Have *task* done in so many seconds, or sooner where it is due already."""
        due = time.monotonic() + seconds
        self._due[task] = min(due, self._due.get(task, due))

    def _notice(self, notice: Notice) -> None:
        if Notice.TABLE in notice:
            self._in(_TABLE_SECONDS, self._restore_table)
        if Notice.FOREIGN in notice:
            rest = self._foreign_done + _FOREIGN_PAUSE_SECONDS - time.monotonic()
            self._in(max(_FOREIGN_SECONDS, rest), self._restore_allowances)

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
            self._troubles.pop(task.__name__, None)
        except NetlibError as error:
            logger.warning("%s", error)
            self._troubles[task.__name__] = str(error)
        except Exception:  # one task's bug must not end the others
            logger.exception("the keeper failed")

    # --- tasks -----------------------------------------------------------------------------------------------------

    def _warm(self) -> None:
        """Load what the first verb will need, before it needs it: 150 ms of imports."""
        import_module("netlib.verbs.perform")
        with self._controller.engine.kernel("") as kernel:
            kernel.rtnl()
            firewall(kernel)

    def _warm_plugins(self) -> None:
        """The same for the first CNI call."""
        from cni_plugins.run import preload

        preload()

    def _finish_containers(self) -> None:
        """Clear away containers that ended, or were half made, while no netlibd was there."""
        from netlib.runtime.service import finish

        finish(self._controller)

    def _restore_table(self) -> None:
        restored = restore_table(self._controller)
        if restored:
            logger.warning("our firewall table was flushed or changed by another program: %d objects were made again", restored)
            self._in(_IN_FLIGHT_SECONDS, self._restore_entries)

    def _restore_entries(self) -> None:
        restored = restore_table(self._controller, thorough=True)
        if restored:
            logger.warning("entries of our firewall table were missing: %d objects were made again", restored)

    def _restore_allowances(self) -> None:
        self._foreign_done = time.monotonic()
        restored = restore_allowances(self._controller)
        if restored:
            logger.warning("another program's forward rules stopped %d of our bridges: they are let through again", restored)

    def _sweep(self) -> None:
        self._in(_SWEEP_SECONDS, self._sweep)
        self._serving.retry_ports()
        with self._controller.store.read() as tx:
            version = tx.change_count()
        if version != self._version:
            self._version = version
            self._controller.host.refuse_loss()  # an older copy's records in flight are no crash's
            self._leases.reload()
            self._controller.recover()
            self._serving.reconcile()

    def _check_redirects(self) -> None:
        """See that each redirect leads to where the resolver listens: a crash may have come between the two."""
        for sandbox in self._serving.served():
            with self._controller.store.read() as tx:
                row = tx.by_id(sandbox)
                if row is None or row.phase is not Phase.READY:
                    continue
                redirects = tx.objects(sandbox).of(DnsRedirect)
            with self._controller.engine.kernel(sandbox) as kernel:
                wrong = any(item.port != row.value.dns_port or item.drift(kernel) is not None for item in redirects)
            if wrong:
                self._moved(sandbox, row.value.dns_port)
