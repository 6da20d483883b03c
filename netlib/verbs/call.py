"""Calling a verb: netlibd performs it, or this process where no netlibd does.

One rule: this process performs the verb only when netlibd certainly has not begun it: nobody listens on its socket, nobody
sends a greeting, the request did not arrive whole, or netlibd answered "not mine". Every command imports this module, so it
imports small modules of the standard library only.
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
    """Have netlibd perform *verb*, or perform it here where no netlibd serves this store; return the verb's JSON result.

    *config* None means the environment's. *fds* are lent to the verb. *start* starts netlibd first when none runs; a netlibd
    that was killed is started again in any case. *deadline* is in seconds for the whole call. *progress* is called with
    ``{"moment": "ensured" | "removed", "object": key}`` for each change of the kernel.

    Raises the errors of the verb; DeadlineExceeded when no answer came in time, and then the verb may still be completed;
    DaemonError when netlibd ended during the verb, and then the next command undoes the unfinished part; Stuck when the verb
    needs a lock or an answer of a netlibd that is stopped.
    """
    config = config or Config.from_environment()
    _check_text([str(config.state_dir), str(config.run_dir), args])
    until = time.monotonic() + deadline
    silent = 0
    for _ in range(2):  # twice: an older netlibd is replaced, and the new one is asked
        try:
            connection = reach(config, until, start=start)
        except Unsent:
            continue
        except Silent as error:
            silent = error.pid
            if verb.startswith(ABOUT_ITSELF):
                raise Stuck(str(error)) from error
            notice(trouble(silent, WITHOUT), subject="netlibd")
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
    """Raise ConfigError for a text that was decoded from bytes other than UTF-8: neither the store nor JSON can hold it."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise ConfigError(f"{value!r} is not UTF-8 text, and no other text can be stored; spell it in UTF-8")
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
    """Return an observer for a Controller that calls *progress* with the dictionaries that :func:`call` describes."""

    def observe(moment: str, item: "KernelObject") -> None:
        if moment in ("ensured", "removed"):
            progress({"moment": moment, "object": str(item.key)})

    return observe
