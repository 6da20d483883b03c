"""A verb asked for: by netlibd, or done in this process where netlibd is not there.

One rule: the work is done here only when the daemon certainly has not begun it (nobody listens, nobody greets, the request did
not reach it whole, it answered "not mine"). Every command imports this module, so it imports the standard library's small
modules only.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from netlib.config import Config
from netlib.errors import ConfigError, Stuck
from netlib.kernel.waiting import trouble
from netlib.wire.client import DEADLINE_SECONDS, WITHOUT, DaemonWatcher, reach, replace
from netlib.wire.conversation import NotMine, Progress, Silent, Unsent
from netlib.wire.notices import notice
from netlib.wire.protocol import ABOUT_ITSELF

if TYPE_CHECKING:
    from netlib.plan import KernelObject

__all__ = ["Progress", "call", "progress_observer"]


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

    *config* None means the environment's. *fds* are lent to the verb. *start*
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
            connection = reach(config, until, start=start)
        except Unsent:
            continue
        except Silent as error:
            silent = error.pid
            if verb.startswith(ABOUT_ITSELF):
                raise Stuck(str(error)) from error
            notice(trouble(silent, WITHOUT))
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
            replace(connection, config, until)
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


def _perform_here(
    config: Config, verb: str, args: dict[str, Any], fds: Sequence[int], progress: Progress | None, silent: int
) -> Any:
    from netlib.core.controller import Controller
    from netlib.kernel.descriptors import raise_limit
    from netlib.kernel.scarcity import translated_scarcity
    from netlib.verbs.perform import perform

    raise_limit()
    observer = progress_observer(progress) if progress else None
    with (
        translated_scarcity(),
        DaemonWatcher(config, silent=silent) as watcher,
        Controller(config, watcher=watcher, observer=observer) as controller,
        controller.undoing_on_scarcity(),
    ):
        return perform(controller, verb, args, fds=fds)


def progress_observer(progress: Progress) -> "Callable[[str, KernelObject], None]":
    """An observer for a Controller that tells *progress* what :func:`call` promises."""

    def observe(moment: str, item: "KernelObject") -> None:
        if moment in ("ensured", "removed"):
            progress({"moment": moment, "object": str(item.key)})

    return observe
