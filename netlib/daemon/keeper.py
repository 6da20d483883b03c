"""The keeper: a thread that reacts to changes which no verb of this netlibd made.

It restores our firewall entries when another program flushes them, checks netlibd's own files when something in the run folder
is deleted, and has the other servants look for what nobody told of: records whose writer was killed before it could. At the
start it also cleans up after containers that ended meanwhile, and checks that each sandbox's redirect of DNS queries leads to
its resolver. Each task is due at a time; an event only makes it due earlier.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path

from netlib.core.controller import Controller
from netlib.daemon.firewall import restore_allowances, restore_table
from netlib.daemon.servants import ChangedRecords, Servant
from netlib.daemon.serving import PortRecorder
from netlib.errors import NetlibError
from netlib.firewall.backend import RuleChange, backend, firewall
from netlib.firewall.objects import DnsRedirect
from netlib.kernel import inotify
from netlib.model import Phase, Sandbox

__all__ = ["Keeper"]

_TABLE_SECONDS = 0.05  # a flush causes many events within a few milliseconds
_IN_FLIGHT_SECONDS = 1.0  # by then, verbs that ran while the table was missing have made their entries
_FOREIGN_SECONDS = 0.5
_FOREIGN_PAUSE_SECONDS = 5.0  # other programs may rewrite their rules all day, and each check lists all of them
_SWEEP_SECONDS = 5.0
_EVENT_BYTES = 1 << 14

logger = logging.getLogger(__name__)


class Keeper:
    """The servant that watches the firewall, the store and the run folder, in its own thread."""

    name = "keeper"

    def __init__(
        self,
        controller: Callable[[], Controller],
        others: Sequence[Servant],
        record_port: PortRecorder,
        run_dir: Path,
        check_files: Callable[[], None],
    ) -> None:
        """Reconcile the *others*; call *check_files* when a file in *run_dir* is gone, *record_port* for a wrong redirect."""
        self._make_controller = controller
        self._controller: Controller  # the thread's own, made in it
        self._others = others
        self._record_port = record_port
        self._run_dir = run_dir
        self._check_files = check_files
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

    def changed(self, change: ChangedRecords) -> tuple[NetlibError, ...]:
        """Do nothing: the keeper reacts to changes that are not announced."""
        return ()

    def reconcile(self, *, store_changed: bool) -> None:
        """Do nothing: the keeper is who asks this of the others."""

    def health(self) -> str | None:
        """Return a sentence on what cannot be watched and on each task whose last run failed, or None."""
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
            for watch in (self._watch_firewall, self._watch_run_folder):
                try:
                    watch(open_sources)
                except NetlibError as error:  # without nf_tables there is no table of ours to watch
                    logger.warning("%s", error)
                    self._troubles[watch.__name__] = str(error)
            self._loop()

    def _watch_firewall(self, open_sources: ExitStack) -> None:
        events = open_sources.enter_context(closing(backend().events()))
        self._sources[events.fileno()] = lambda: self._on_firewall_events(events.read())
        self._in(0, self._restore_table)  # it may have been flushed while no netlibd ran

    def _watch_run_folder(self, open_sources: ExitStack) -> None:
        self._in(0, self._check_files)  # inotify does not report what was deleted before
        fd = inotify.watch(self._run_dir, inotify.LOST)
        open_sources.callback(os.close, fd)

        def on_deleted() -> None:
            os.read(fd, _EVENT_BYTES)
            self._check_files()

        self._sources[fd] = on_deleted

    def _loop(self) -> None:
        poller = select.poll()
        for fd in (self._wake, *self._sources):
            poller.register(fd, select.POLLIN)
        while not self._stopping:
            seconds = min(self._due.values()) - time.monotonic()
            for fd, _ in poller.poll(max(0, seconds) * 1000):
                if fd in self._sources:
                    self._sources[fd]()
            now = time.monotonic()
            for task in [task for task, due in self._due.items() if due <= now]:
                del self._due[task]
                self._do(task)

    def _in(self, seconds: float, task: Callable[[], None]) -> None:
        """Make *task* due in *seconds*, or leave it due earlier where it already is."""
        due = time.monotonic() + seconds
        self._due[task] = min(due, self._due.get(task, due))

    def _on_firewall_events(self, change: RuleChange) -> None:
        if RuleChange.TABLE in change:
            self._in(_TABLE_SECONDS, self._restore_table)
        if RuleChange.FOREIGN in change:
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
        """Import what the first verb needs (150 ms) and open its connections to the kernel, before it is called."""
        import_module("netlib.verbs.perform")
        with self._controller.engine.kernel("") as kernel:
            kernel.rtnl()
            firewall(kernel)

    def _warm_plugins(self) -> None:
        """Import what the first CNI call needs, before it comes."""
        from cni_plugins.run import preload

        preload()

    def _finish_containers(self) -> None:
        """Clean up after containers that ended, or whose creation or removal broke off, while no netlibd ran."""
        from netlib.runtime.leftovers import finish

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
        with self._controller.store.read() as tx:
            version = tx.change_count()
        store_changed, self._version = version != self._version, version
        if store_changed:
            self._controller.host.refuse_loss()  # records in flight of an older copy of the store are not left by a crash
            self._controller.follow_settings()
            self._controller.recover()
        for servant in self._others:
            servant.reconcile(store_changed=store_changed)

    def _check_redirects(self) -> None:
        """Correct redirects that lead to another port than the resolver's: a crash may have come between port and redirect."""
        with self._controller.store.read() as tx:
            sandboxes = [row.id for row in tx.all(Sandbox)]
        for sandbox in sandboxes:
            with self._controller.store.read() as tx:
                row = tx.by_id(sandbox)
                if row is None or row.phase is not Phase.READY:
                    continue
                redirects = tx.objects(sandbox).of(DnsRedirect)
            if not redirects:
                continue
            with self._controller.engine.kernel(sandbox) as kernel:
                wrong = any(item.port != row.value.dns_port or item.drift(kernel) is not None for item in redirects)
            if wrong:
                self._record_port(sandbox, row.value.dns_port)
