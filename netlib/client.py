"""netlibd from the caller's side: ask it, start it, or do the work in this process where it is not there.

One rule: the work is done here only when the daemon certainly has not begun it (nobody listens, nobody greets, the request did
not reach it whole, it answered "not mine"). Every command imports this module, so it imports the standard library's small
modules only. One conversation is :mod:`netlib.conversation`, a start is :mod:`netlib.starting`.
"""

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Self

from netlib.config import Config
from netlib.conversation import START_SECONDS, BrokenOff, Connection, NotMine, Progress, Silent, Unsent, known_pid
from netlib.errors import ConfigError, DaemonError, NetlibError, Stuck
from netlib.notices import notice
from netlib.waiting import is_stopped, trouble
from netlib.wire import ABOUT_ITSELF, GREETING_SECONDS

if TYPE_CHECKING:
    from netlib.plan import KernelObject

__all__ = [
    "DEADLINE_SECONDS",
    "DaemonWatcher",
    "Progress",
    "call",
    "condition",
    "leave",
    "progress_observer",
    "refuse_silent",
    "see_out_former",
    "start_daemon",
]

DEADLINE_SECONDS = 120.0  # two locks of 60 s, the longest that a verb may wait
TELL_SECONDS = 30.0
_NEEDED_SECONDS = 3.0  # for the greeting of a netlibd that is needed and only slow
_WITHOUT = ", so names and held ports stay as they were"


def call(
    config: Config | None,
    verb: str,
    args: dict[str, Any],
    *,
    fds: Sequence[int] = (),
    start: bool = False,
    deadline: float = DEADLINE_SECONDS,
    progress: Progress | None = None,
) -> Any:
    """Have *verb* done by netlibd, or here where netlibd is not there or not ours, and return its JSON result.

    *config* None means the environment's. *fds* are lent to the verb, which finds their numbers in ``args["fds"]``. *start*
    starts netlibd first when it is not there; one that was killed is started again in any case. *deadline* is in seconds
    for all of it. *progress* is told ``{"moment": "ensured" | "removed", "object": key}`` as the kernel changes.

    Raises what the verb raises; DeadlineExceeded when no answer came in time (the work may still be done); DaemonError when
    netlibd broke off (what it left half done is undone by the next command); Stuck when a netlibd that is stopped holds, or
    must serve, what the verb needs.
    """
    config = config or Config.from_environment()
    _check_text([str(config.state_dir), str(config.run_dir), args])
    until = time.monotonic() + deadline
    silent = 0
    for _ in range(2):  # twice: an older netlibd is replaced and asked again
        try:
            connection = _reach(config, until, start=start)
        except Unsent:
            continue
        except Silent as error:
            silent = error.pid
            if verb.startswith(ABOUT_ITSELF):
                raise Stuck(str(error)) from error
            notice(trouble(silent, _WITHOUT))
            break
        if connection is None:
            break
        try:
            return connection.ask(verb, args, until, fds=fds, progress=progress)
        except Unsent:
            continue
        except NotMine as answer:
            if not answer.is_older:
                break
            _replace(connection, config, until)
        finally:
            connection.close()
    return _perform_here(config, verb, args, fds, progress, silent)


def _check_text(value: Any) -> None:
    """Raise ConfigError for a text that came in bytes which are no UTF-8: neither the store nor JSON can keep it."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ConfigError(f"{value!r} is no UTF-8 text, and nothing else can be kept; spell it in UTF-8")
    elif isinstance(value, dict):
        _check_text([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            _check_text(item)


def start_daemon(config: Config | None = None, *, deadline: float = START_SECONDS) -> None:
    """See :func:`netlib.starting.start_daemon`."""
    from netlib import starting  # few commands start one

    starting.start_daemon(config, deadline=deadline)


def leave(config: Config | None = None, *, deadline: float = START_SECONDS) -> bool:
    """Ask netlibd to end, and wait until it has; False when it is not there. What the kernel holds stays as it is.

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
        connection.see_out(until)
    finally:
        connection.close()
    return True


def refuse_silent(config: Config) -> None:
    """Raise Stuck for a netlibd that is stopped or answers nobody; return where it answers, or is not there."""
    try:
        Connection(config, time.monotonic() + START_SECONDS).close()
    except Silent as error:
        raise Stuck(str(error)) from error
    except (OSError, Unsent):
        return


def condition(config: Config) -> str:
    """How netlibd is, for people: as it is seen from outside, without asking it."""
    pid = known_pid(config)
    if not pid:
        return "not running"
    return trouble(pid) if is_stopped(pid) else f"pid {pid}"


# --- reaching it -------------------------------------------------------------------------------------------------------


def _reach(config: Config, until: float, *, start: bool, patience: float = GREETING_SECONDS) -> Connection | None:
    """A connection, or None where there is no netlibd and *start* does not ask for one. Raises Silent, Unsent."""
    was_killed = False
    try:
        return Connection(config, until, patience=patience)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        was_killed = isinstance(error, ConnectionRefusedError) | see_out_former(config, until)
    except OSError:
        pass
    if was_killed:  # a socket without a listener: whoever needed it still does
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
        raise DaemonError(f"netlibd was started and is gone again; see {config.log_file}") from error


def see_out_former(config: Config, until: float) -> bool:
    """Have a netlibd of an earlier netlib, which has only ``netlibd.sock``, leave; whether one is to be started in its place.

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
            former.see_out(until)
    finally:
        former.close()
    return True


def _is_newer(config: Config, until: float) -> bool:
    try:
        Connection(config, until).close()
    except OSError:
        return False
    return True


def _replace(connection: Connection, config: Config, until: float) -> None:
    """Let the older netlibd at the other end leave, and start this version's."""
    connection.see_out(until)
    start_daemon(config, deadline=until - time.monotonic())


def _perform_here(
    config: Config, verb: str, args: dict[str, Any], fds: Sequence[int], progress: Progress | None, silent: int
) -> Any:
    from netlib.controller import Controller
    from netlib.kernel.descriptors import raise_limit
    from netlib.scarcity import translated_scarcity
    from netlib.verbs import perform

    raise_limit()
    observer = progress_observer(progress) if progress else None
    with (
        translated_scarcity(),
        DaemonWatcher(config, silent=silent) as watcher,
        Controller(config, watcher=watcher, observer=observer) as controller,
        controller.undoing_on_scarcity(),
    ):
        return perform(controller, verb, {**args, "fds": list(fds)} if fds else args)


def progress_observer(progress: Progress) -> "Callable[[str, KernelObject], None]":
    """An observer for a Controller that tells *progress* what :func:`call` promises."""

    def observe(moment: str, item: "KernelObject") -> None:
        if moment in ("ensured", "removed"):
            progress({"moment": moment, "object": str(item.key)})

    return observe


# --- telling it what changed -------------------------------------------------------------------------------------------


class DaemonWatcher:
    """Tells netlibd which records changed, and comes back when it serves them: :class:`netlib.controller.Watcher`.

    One connection is kept open. It belongs to the thread and the process that made it; a forked child makes its own.
    """

    def __init__(self, config: Config, *, silent: int = 0) -> None:
        """*silent* is the pid of a netlibd that is known not to greet; it is not waited for again while it is stopped."""
        self._config = config
        self._silent = silent
        self._told: int | None = None
        self._connection: Connection | None = None
        self._pid = os.getpid()

    def changed(self, *, sandboxes: Collection[str], networks: Collection[str], needed: bool) -> None:
        """Let netlibd read these records again; where it is not there it is started if *needed*.

        Raises DaemonError, Stuck and what :func:`start_daemon` raises, when *needed*: the kernel then has what was asked, but
        nobody serves names and holds ports yet. A netlibd that is stopped and not needed is worth a notice; once it goes on, it
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
                notice(trouble(pid, _WITHOUT) if isinstance(error, Silent) else kept)
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
        for _ in range(3):  # a kept connection whose daemon is gone; an older version; then a true answer
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
            except BrokenOff:  # it ended meanwhile; to read records once more does no harm
                self.close()
            except NotMine as answer:
                if not answer.is_older:
                    raise DaemonError(
                        f"names and ports are not served: netlibd (pid {connection.pid}) says: {answer}"
                    ) from answer
                _replace(connection, self._config, until)
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
            self._connection = _reach(self._config, until, start=needed, patience=patience)
            self._silent = 0
        return self._connection
