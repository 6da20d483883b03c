"""An action that fails, or whose process dies, at one of the moments that the core tells of: before and after each object."""

import os
import signal
from collections.abc import Callable

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import KernelError
from netlib.plan import KernelObject

__all__ = ["interrupted"]


def interrupted(config: Config, moment: int, action: str, attempt: Callable[[Controller], bool]) -> bool:
    """Return whether *attempt* reached that moment, at which it fails or, in a process of its own, dies (*action*).

    *attempt* says whether it was refused with the failure, "injected at …".
    """
    count = -1

    def observer(_: str, item: KernelObject) -> None:
        nonlocal count
        count += 1
        if count == moment:
            if action == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KernelError(f"injected at {item.key}")

    def perform() -> bool:
        with Controller(config, watcher=Unwatched(), observer=observer) as controller:
            return attempt(controller)

    if action == "fail":
        return perform()
    child = os.fork()
    if child == 0:
        try:
            perform()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
