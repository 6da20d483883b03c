"""netlibd's work once it has claimed its run folder: it performs verbs and runs the servants.

Threads: the main thread waits for requests on the control socket. Workers perform the verbs, each with its own controller,
because a controller is for one thread. One thread answers DNS queries. The keeper's thread watches the firewall, the store and
the run folder. Threads for DHCP leases and for ``[::1]`` are started when they are needed.
"""

import faulthandler
import logging
import logging.handlers
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from netlib import __version__
from netlib.config import Config
from netlib.core.controller import Controller
from netlib.daemon.dialects import Request
from netlib.daemon.fastpath import BACKLOG, ControlServer, Outdated, Refused
from netlib.daemon.keeper import Keeper
from netlib.daemon.leases import DhcpLeases
from netlib.daemon.ports import HeldPorts
from netlib.daemon.servants import Servant, Servants
from netlib.daemon.serving import Serving
from netlib.dns.server import DnsServer
from netlib.errors import ConfigError, StoreError, StoreLost
from netlib.kernel.descriptors import raise_limit
from netlib.kernel.folders import open_private
from netlib.kernel.netns import boot_id
from netlib.model import Sandbox
from netlib.packages import changed_package
from netlib.plan import KernelObject
from netlib.store.sqlite import Store
from netlib.verbs.call import Progress, progress_observer
from netlib.wire.notices import shown_by
from netlib.wire.protocol import PROTOCOL, at_socket, release, store_identity

__all__ = ["Service"]

LOG_BYTES = 1 << 20  # and the same size again in the rotated file
# Under load the DNS thread runs all the time. With Python's switch interval of 5 ms, a verb would wait that long for the
# interpreter after each system call.
_SWITCH_SECONDS = 0.0005

logger = logging.getLogger(__name__)


class Service:
    """netlibd on a run folder that this process has claimed, from the start to :meth:`close`."""

    def __init__(self, config: Config, *, detached: bool) -> None:
        """Open the store, start the servants and listen on the sockets. Raises WrongHost, NotPermitted, StoreError."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        raise_limit()
        open_log(config, to_stderr=not detached)
        self._config = config
        self._started = time.time()
        self._local = threading.local()
        self._files: list[tuple[int, int] | None] | None = None  # None until the sockets exist
        self._stopping = False
        store = Store(config.state_dir, boot=boot_id())
        store.require_writable()
        ports = HeldPorts()
        kept: list[Servant] = [ports, Serving(store, DnsServer(), ports, self._move_resolver), DhcpLeases(self._controller)]
        keeper = Keeper(self._controller, kept, self._move_resolver, config.run_dir, self._check_files)
        self._servants = Servants([*kept, keeper])
        self._controller().locks.sweep()  # making the controller has undone what a crash left, before anything is served
        self._store_identity = store_identity(config.state_dir)
        self._servants.start()
        try:
            # Before the former socket: a client that finds that one finds this one too.
            listener = self._listen(config.socket_path)
            self._control = ControlServer(listener, self._handle, __version__, former=self._listen(config.former_socket_path))
        except BaseException:
            self._servants.stop()
            raise
        self._files = self._present_files()
        logger.info("netlibd %s (pid %d) serves %s", __version__, os.getpid(), config.state_dir)

    def run(self) -> None:
        """Serve until :meth:`stop`, then stop the servants. Connections stay open until :meth:`close`; kernel objects stay."""
        self._control.run()
        self._servants.stop()
        logger.info("netlibd (pid %d) ends", os.getpid())

    def stop(self) -> None:
        """Make :meth:`run` return; any thread or signal handler may call this."""
        self._stopping = True
        if self._present_files() == self._files:  # else the sockets are another netlibd's
            for path in (self._config.former_socket_path, self._config.socket_path):
                path.unlink(missing_ok=True)  # clients take a socket without a listener for a crash
        self._control.stop()

    def close(self) -> None:
        """Close the connections, once another netlibd may start; callers of ``daemon.leave`` wait for that."""
        self._control.close()

    def _present_files(self) -> list[tuple[int, int] | None]:
        """Return device and inode of our pid file and our sockets, None for each that is missing."""
        found: list[tuple[int, int] | None] = []
        for path in (self._config.pid_file, self._config.socket_path, self._config.former_socket_path):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino))
        return found

    def _check_files(self) -> None:
        """End when a file of ours in the run folder was deleted or replaced, for no command can reach this netlibd any more.

        The next command that needs a netlibd starts another one.
        """
        if self._stopping:  # we delete them ourselves
            return
        if self._files is not None and (self._present_files() != self._files or None in self._files):
            logger.warning("the run folder %s was deleted or replaced, so this netlibd ends", self._config.run_dir)
            self.stop()

    @staticmethod
    def _listen(path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)  # left by a netlibd that was killed: we have the lock on the run folder
            old = os.umask(0o177)
            try:
                at_socket(path, listener.bind)
            finally:
                os.umask(old)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    # --- requests --------------------------------------------------------------------------------------------------

    def _handle(self, request: Request) -> Any:
        if request.about_itself:
            return self._about_itself(request)
        if not _understands(request):
            raise Refused(f"this is netlib {__version__} (protocol {PROTOCOL})")
        if not request.from_here:
            raise Refused("it runs in other namespaces (network, mount or user) than the caller")
        self._check_store(request)
        if package := changed_package():
            raise Outdated(f"the package {package} was upgraded or uninstalled after this netlibd loaded it")
        with shown_by(request.notices.append):
            return self._perform(request)

    def _perform(self, request: Request) -> Any:
        try:
            self._controller().host.refuse_loss()
        except StoreLost as lost:
            self.stop()
            raise Refused(str(lost)) from lost
        if request.from_launcher:
            from cni_plugins.run import serve

            return serve(open_controller=self._controller, is_awaited=request.is_awaited, **request.args)
        from netlib.verbs.perform import perform  # imported here, so that the start need not wait; the keeper imports it ahead

        self._local.tell = request.tell
        try:
            controller = self._controller()
            with controller.undoing_on_scarcity():
                return perform(controller, request.verb, request.args, fds=request.fds)
        finally:
            self._local.tell = None

    def _about_itself(self, request: Request) -> Any:
        match request.verb:
            case "daemon.ping":
                return {"pid": os.getpid(), "version": __version__, "protocol": PROTOCOL, "started": self._started}
            case "daemon.leave":
                self.stop()
                return None
            case "daemon.changed":
                if request.version != __version__:
                    raise Refused(f"this is netlib {__version__}")
                self._check_store(request)
                self._servants.changed(**request.args)
                return None
        raise ConfigError(f"unknown verb {request.verb!r}")

    def _check_store(self, request: Request) -> None:
        """Raise Refused for a caller with another store; also end when our own store was deleted or replaced."""
        if store_identity(self._config.state_dir) != self._store_identity:
            self.stop()
            raise Refused(f"its store {self._config.state_dir} was deleted or replaced, and it ends")
        if request.store != self._store_identity:
            raise Refused(f"it serves another store ({self._config.state_dir})")

    def _controller(self) -> Controller:
        """Return the controller of the calling thread, made at its first call."""
        controller: Controller | None = getattr(self._local, "controller", None)
        if controller is None:
            controller = self._local.controller = Controller(self._config, watcher=self._servants, observer=self._observe)
        return controller

    def _observe(self, moment: str, item: KernelObject) -> None:
        tell: Progress | None = getattr(self._local, "tell", None)
        if tell is not None:
            progress_observer(tell)(moment, item)

    def _move_resolver(self, sandbox: str, port: int) -> None:
        """Record the new *port* of *sandbox*'s resolver, and change the sandbox's redirect of DNS queries to it."""
        controller = self._controller()
        with controller.lifecycle.working_on([sandbox], f"leading {sandbox[:12]} to its resolver"):
            with controller.store.write() as tx:
                row = tx.by_id(sandbox)
                if row is None or not isinstance(row.value, Sandbox):
                    return
                tx.replace(replace(row.value, dns_port=port))
            with controller.engine.kernel(sandbox) as kernel:
                controller.lifecycle.replan_sandbox(kernel, sandbox)


def _understands(request: Request) -> bool:
    """Whether this netlibd can perform *request*: one of the same version or, of a CNI launcher, of an older one as well.

    A launcher stays at its version until it is installed again. It only passes on fields that have not changed.
    """
    if request.from_launcher:
        return release(request.version) <= release(__version__)
    return (request.protocol, request.version) == (PROTOCOL, __version__)


class _BoundedLog(logging.handlers.RotatingFileHandler):
    """A log file that is rotated at 1 MiB, and to which standard output and error are redirected, for what libraries print."""

    def __init__(self, path: str, *, adopts_output: bool) -> None:
        self._adopts_output = adopts_output
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1)

    def _open(self) -> Any:
        stream = open(open_private(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")  # noqa: SIM115
        if self._adopts_output:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        return stream


def open_log(config: Config, *, to_stderr: bool) -> None:
    """Log to the file in the run folder, and with *to_stderr* also to standard error, for systemd or a person."""
    path = config.log_file
    try:
        handlers: list[logging.Handler] = [_BoundedLog(str(path), adopts_output=not to_stderr)]
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; remove it, or pass --run-dir") from error
    if to_stderr:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)
    faulthandler.enable()  # prints a traceback when a library ends the process by a signal
