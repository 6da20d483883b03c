"""One call done in this process: in netlibd for a launcher, or in the launcher's own process where netlibd cannot do it."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from cni_plugins.decode import MAX_BYTES
from cni_plugins.launcher.call import Answer, LauncherCall, Lost, NotBegun, lost_answer
from cni_plugins.launcher.wire import NETNS, STDIN, environment
from cni_plugins.node import Node
from cni_plugins.protocol import NEWEST, CniError, Code, as_cni_error, error_json
from cni_plugins.skel import Outcome, answer
from cni_plugins.types import find_plugin_class, plugin_types
from netlib import __version__
from netlib.config import Config
from netlib.errors import NetlibError
from netlib.kernel.waiting import meet, trouble
from netlib.wire.conversation import Silent, Unsent, known_pid
from netlib.wire.notices import notice, shown_by
from netlib.wire.protocol import release

if TYPE_CHECKING:
    from netlib.core.controller import Controller

__all__ = ["do_without", "failed", "perform", "preload", "serve"]

_COMMON = ("bridge", "host-local", "portmap", "firewall", "bandwidth", "tuning", "loopback")


def preload() -> None:
    """Import the modules that most calls need, which makes the first call 40 ms shorter."""
    for kind in _COMMON:
        find_plugin_class(kind)


def perform(kind: str, environ: Mapping[str, str], stdin: bytes, node: Node) -> Outcome:
    """Answer a call of the plugin type *kind*. Never raises: every failure is an error object."""
    found = find_plugin_class(kind)
    if found is None:
        details = f"the name of the executable is the type; netlib answers for {', '.join(plugin_types())}"
        return failed(CniError(Code.INVALID_CONFIG, f"unknown plugin type {kind!a}", details))
    return answer(found(node), environ, stdin, node.is_own_netns)


def failed(error: NetlibError) -> Outcome:
    """The outcome of a call that failed before its plugin was asked."""
    return Outcome(error_json(as_cni_error(error), NEWEST), 1)


def serve(
    kind: str,
    environ: Mapping[str, str],
    lent: Mapping[bytes, int],
    open_controller: "Callable[[], Controller]",
    is_awaited: Callable[[], bool],
) -> Outcome:
    """Do a launcher's call, in netlibd. *lent* are descriptors by name: the file in memory that holds stdin, the netns."""
    node = Node(open_controller, lent.get(NETNS), is_awaited)
    return perform(kind, environ, _content(lent[STDIN]) if STDIN in lent else b"", node)


def _content(fd: int) -> bytes:
    """All of a file, whatever its offset, which is the lender's; at most one byte more than a configuration may have."""
    return os.pread(fd, min(os.fstat(fd).st_size, MAX_BYTES + 1), 0)


def do_without(call: LauncherCall, reason: NotBegun) -> Answer:
    """Do a launcher's call that netlibd has not begun: start a netlibd that does it, or do it in this process."""
    told: list[str] = []
    with shown_by(told.append):
        stdout, code, stderr = _do_without(call, reason)
    notices = "".join(f"{sentence}\n" for sentence in told)
    return stdout, code, notices.encode(errors="backslashreplace") + stderr


def _do_without(call: LauncherCall, reason: NotBegun) -> Answer:
    try:
        config = Config.from_environment(state_dir=os.fsdecode(call.state_dir), run_dir=os.fsdecode(call.run_dir))
    except NetlibError as error:  # the folder is relative to a working directory that is gone
        outcome = failed(error)
        return outcome.stdout, outcome.code, b""
    try:
        if _bring_up(call, reason, config):
            return call.ask()
    except Lost as lost:
        return lost_answer(lost)
    except (NotBegun, Unsent):  # the netlibd that was started cannot do this call either
        pass
    except (Silent, NetlibError, OSError) as error:  # OSError: no process or descriptor is left for it
        notice(f"netlibd is not used: {error}", subject="netlibd")
    silent = known_pid(config) if reason.is_silent else 0
    if reason.is_silent:
        meet(silent)
        notice(f"netlibd is not used: {trouble(silent) if silent else reason}", subject="netlibd")
    outcome = _do_here(call, config, silent)
    return outcome.stdout, outcome.code, outcome.stderr


def _bring_up(call: LauncherCall, reason: NotBegun, config: Config) -> bool:
    """Start netlibd where there is none, or where an older one can be replaced; True where it can then be asked."""
    from netlib.wire.client import end_former, leave, start_daemon
    from netlib.wire.conversation import START_SECONDS

    is_older = bool(reason.release) and release(reason.release) < release(__version__)
    if call.stdin is None or os.geteuid() != 0 or not (reason.is_absent or is_older):
        return False
    if is_older:
        leave(config, deadline=min(START_SECONDS, call.seconds_left))
    else:
        end_former(config, time.monotonic() + min(START_SECONDS, call.seconds_left))
    start_daemon(config, deadline=min(START_SECONDS, call.seconds_left))
    return True


def _do_here(call: LauncherCall, config: Config, silent: int) -> Outcome:
    environ = environment([name + b"=" + value for name, value in call.environ.items()])
    with ExitStack() as stack:

        def open_controller() -> "Controller":
            from netlib.core.controller import Controller
            from netlib.wire.client import DaemonWatcher

            watcher = stack.enter_context(DaemonWatcher(config, silent=silent))
            is_del = environ.get("CNI_COMMAND") == "DEL"  # which works without records: it finds objects by their tags
            return stack.enter_context(Controller(config, watcher=watcher, despite_loss=is_del))

        return perform(call.kind, environ, call.stdin or b"", Node(open_controller, call.netns))
