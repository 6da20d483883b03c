"""The verbs that tell of records and the kernel, and those of the whole system."""

import os
import platform
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from netlib import __version__
from netlib.core.controller import Controller
from netlib.errors import ConfigError, Conflict, NotFound
from netlib.model import Network, Sandbox
from netlib.store.backup import copy_store
from netlib.verbs import cni
from netlib.verbs.inspect import journal_row
from netlib.wire.client import condition

__all__ = ["check", "explain", "log", "system_backup", "system_info", "system_reset", "version"]


def explain(controller: Controller, *, name: str) -> list[dict[str, Any]]:
    """The objects of a network or a container, each with the commands that amount to it."""
    record = _in_kernel(controller, name)
    plan = controller.plan_of(record) if record else cni.plan(controller, name)
    return [{"Object": str(item.key), "Commands": list(item.commands())} for item in plan]


def check(controller: Controller, *, name: str) -> list[dict[str, str]]:
    """How the kernel differs from what was written down for a network or a container; empty when it does not."""
    record = _in_kernel(controller, name)
    found = controller.check(record) if record else cni.drift(controller, name)
    return [{"Object": key, "Drift": difference} for key, difference in found]


def _in_kernel(controller: Controller, name: str) -> str:
    """The network or the sandbox that *name* stands for: a container's own, or that of the one whose network it shares.

    Whole names and ids come before beginnings of ids. Empty where only CNI may know it.
    """
    from netlib.runtime.service import find_container
    from netlib.runtime.spec import Container

    found: list[Network | Sandbox | Container] = []
    for find in (controller.network, controller.sandbox, partial(find_container, controller)):
        with suppress(NotFound):
            found.append(find(name))
    whole = [record for record in found if name in (record.name, record.id)]
    if not found or (not whole and name in cni.names(controller)):
        return ""
    record = (whole or found)[0]
    if not isinstance(record, Container):
        return record.id
    if record.spec.netns_of:
        return _in_kernel(controller, record.spec.netns_of)
    raise Conflict(f"container {record.name!r} is not running, so there is nothing of it in the kernel; start it first")


def log(controller: Controller, *, limit: int = 50) -> list[dict[str, Any]]:
    """The last operations, oldest first."""
    if limit < 1:
        raise ConfigError(f"-n {limit} asks for no operation at all; give a number from 1 on")
    return [journal_row(entry) for entry in controller.journal(limit)]


def system_reset(controller: Controller) -> None:
    """Remove all that is ours: containers first, then everything else, and put changed sysctls back."""
    from netlib.verbs.container import remove_all

    remove_all(controller)
    controller.reset()


def system_backup(controller: Controller, *, file: str, replace: bool = False) -> None:
    """Copy the store into *file*, a whole path, as it is at one moment; other verbs go on meanwhile."""
    copy_store(controller.store.path, Path(file), replace=replace)


def system_info(controller: Controller) -> dict[str, Any]:
    """What there is, and where."""
    return {
        "Version": __version__,
        "Networks": len(controller.networks()),
        "Sandboxes": len(controller.sandboxes()),
        "Endpoints": len(controller.endpoints()),
        "StateDir": str(controller.config.state_dir),
        "RunDir": str(controller.config.run_dir),
        "FirewallBackend": "nftables",
        "KernelVersion": platform.release(),
        "Architecture": platform.machine(),
        "ServedBy": os.getpid(),
        "Netlibd": condition(controller.config),
    }


def version(_: Controller) -> dict[str, str]:
    """The version of the netlib that answers."""
    return {"Version": __version__, "Python": platform.python_version(), "KernelVersion": platform.release()}
