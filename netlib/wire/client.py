"""netlibd from the caller's side: reach it, end it, replace it, and tell it which records changed.

It knows the wire and no verb: a verb is asked for by :func:`netlib.verbs.call.call`. Every command imports this module, so it
imports the standard library's small modules only. One conversation is :mod:`netlib.wire.conversation`, a start is
:mod:`netlib.wire.starting`.
"""

import os
import time
from collections.abc import Collection
from typing import Any, Self

from netlib.config import Config
from netlib.errors import DaemonError, NetlibError, Stuck
from netlib.kernel.waiting import is_stopped, trouble
from netlib.wire.conversation import START_SECONDS, BrokenOff, Connection, NotMine, Silent, Unsent, known_pid
from netlib.wire.notices import notice
from netlib.wire.protocol import GREETING_SECONDS

__all__ = [
    "DEADLINE_SECONDS",
    "WITHOUT",
    "DaemonWatcher",
    "condition",
    "end_former",
    "leave",
    "reach",
    "refuse_silent",
    "replace",
    "start_daemon",
]

DEADLINE_SECONDS = 120.0  # two locks of 60 s, the longest that a verb may wait
TELL_SECONDS = 30.0
NOT_RUNNING = "not running"
_NEEDED_SECONDS = 3.0  # for the greeting of a netlibd that is needed and only slow
WITHOUT = ", so names and held ports stay as they were"


def start_daemon(config: Config | None = None, *, deadline: float = START_SECONDS) -> None:
    """See :func:`netlib.wire.starting.start_daemon`."""
    from netlib.wire import starting  # few commands start one

    starting.start_daemon(config, deadline=deadline)


def leave(config: Config | None = None, *, deadline: float = START_SECONDS) -> bool:
    """Ask netlibd to end, and wait until it has; False when there is none. The kernel's objects are left unchanged.

    Raises Stuck for a netlibd that is stopped or answers nobody.
    """
    config = config or Config.from_environment()
    until = time.monotonic() + deadline
    try:
        try:
            connection = Connection(config, until)
        except (FileNotFoundError, ConnectionRefusedError):
            connection = Connection(config, until, former=True)
    except (OSError, Unsent):
        return False
    except Silent as error:
        raise Stuck(str(error)) from error
    try:
        connection.end_netlibd(until)
    finally:
        connection.close()
    return True


def refuse_silent(config: Config) -> None:
    """Raise Stuck for a netlibd that is stopped or answers nobody; return where it answers, or there is none."""
    try:
        Connection(config, time.monotonic() + START_SECONDS).close()
    except Silent as error:
        raise Stuck(str(error)) from error
    except (OSError, Unsent):
        return


def condition(config: Config) -> str:
    """Say for a person whether netlibd runs, by its pid file and without asking it."""
    pid = known_pid(config)
    if not pid:
        return NOT_RUNNING
    return trouble(pid) if is_stopped(pid) else f"pid {pid}"


# --- reaching it -------------------------------------------------------------------------------------------------------


def reach(config: Config, until: float, *, start: bool, patience: float = GREETING_SECONDS) -> Connection | None:
    """A connection, or None where there is no netlibd and *start* does not ask for one. Raises Silent, Unsent."""
    was_killed = False
    try:
        return Connection(config, until, patience=patience)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        was_killed = isinstance(error, ConnectionRefusedError) | end_former(config, until)
    except OSError:
        pass
    if was_killed:  # a socket without a listener: names and ports that netlibd served are still needed
        try:
            start_daemon(config, deadline=until - time.monotonic())
        except NetlibError:
            if start:
                raise
            return None
    elif start:
        start_daemon(config, deadline=until - time.monotonic())
    else:
        return None
    try:
        return Connection(config, until, patience=patience)
    except OSError as error:
        raise DaemonError(f"netlibd was started and has ended again; see {config.log_file}") from error


def end_former(config: Config, until: float) -> bool:
    """End a netlibd of an earlier netlib, which has only ``netlibd.sock``; True where one is to be started in its place.

    Both sockets lead to a newer netlibd, which listens on ``control.sock`` first; to start it once more is a no-op.
    """
    try:
        former = Connection(config, until, former=True)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    try:
        if not _is_newer(config, until):
            former.end_netlibd(until)
    finally:
        former.close()
    return True


def _is_newer(config: Config, until: float) -> bool:
    try:
        Connection(config, until).close()
    except OSError:
        return False
    return True


def replace(connection: Connection, config: Config, until: float) -> None:
    """End the older netlibd at the other end of *connection*, and start one of this version."""
    connection.end_netlibd(until)
    start_daemon(config, deadline=until - time.monotonic())


# --- telling it what changed -------------------------------------------------------------------------------------------


class DaemonWatcher:
    """Tells netlibd which records changed, and returns when it serves them: a :class:`netlib.core.session.Watcher`.

    One connection is kept open. It belongs to the thread and the process that made it; a forked child makes its own.
    """

    def __init__(self, config: Config, *, silent: int = 0) -> None:
        """*silent* is the pid of a netlibd that is known not to greet; while it is stopped it is not waited for again."""
        self._config = config
        self._silent = silent
        self._told: int | None = None
        self._connection: Connection | None = None
        self._pid = os.getpid()

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Have netlibd read these records again; where there is none, start one if *needed*.

        Raises DaemonError, Stuck and what :func:`start_daemon` raises, if *needed*: the kernel has its objects then, but names
        are not served yet, nor ports held. A stopped netlibd that is not needed is worth a notice; when it continues, it
        finds by itself what changed.
        """
        args = {"sandboxes": list(sandboxes), "networks": list(networks), "needed": needed}
        try:
            self._tell(args, needed)
        except (Silent, Stuck) as error:
            pid = self._silent = error.pid if isinstance(error, Silent) else known_pid(self._config)
            self.close()
            if needed:
                self._told = pid
                raise Stuck(f"names and ports are not served: {error}") from error
            if pid != self._told:  # else an error has said it
                kept = f"names and held ports stay as they were: {error}"
                notice(trouble(pid, WITHOUT) if isinstance(error, Silent) else kept, subject="netlibd")
        except NetlibError:
            self.close()
            if needed:
                raise

    def close(self) -> None:
        """Close the connection; the next change opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, args: dict[str, Any], needed: bool) -> None:
        until = time.monotonic() + TELL_SECONDS
        for _ in range(3):  # an open connection whose netlibd has ended; an older version; then a true answer
            try:
                connection = self._connected(until, needed)
            except Unsent:
                continue
            if connection is None:
                return
            try:
                connection.ask("daemon.changed", args, until, repeatable=True)
                return
            except Unsent:
                self.close()
            except BrokenOff:  # netlibd ended meanwhile; to have records read once more does no harm
                self.close()
            except NotMine as answer:
                if not answer.is_older:
                    raise DaemonError(
                        f"names and ports are not served: netlibd (pid {connection.pid}) says: {answer}"
                    ) from answer
                replace(connection, self._config, until)
                self.close()
        raise DaemonError(f"names and ports are not served: netlibd broke off three times; see {self._config.log_file}")

    def _connected(self, until: float, needed: bool) -> Connection | None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.close()
        if self._connection is None:
            if self._silent and is_stopped(self._silent):
                raise Silent(self._silent)
            patience = _NEEDED_SECONDS if needed else GREETING_SECONDS
            self._connection = reach(self._config, until, start=needed, patience=patience)
            self._silent = 0
        return self._connection
