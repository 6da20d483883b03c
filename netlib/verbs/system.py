"""The verbs that show records and the kernel (``explain``, ``check``, ``log``), and the verbs of ``netlib system``."""

import os
import platform
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from netlib import __version__
from netlib.core import reports
from netlib.core.controller import Controller
from netlib.core.session import ReportsHealth
from netlib.errors import ConfigError, Conflict, NotFound
from netlib.firewall.backend import BACKEND
from netlib.model import Endpoint, Network, Phase, Sandbox
from netlib.requests import BackupRequest, LogRequest, NameRequest, NoRequest
from netlib.store.backup import copy_store
from netlib.store.objects import Unreadable
from netlib.store.schema import MIGRATIONS
from netlib.verbs import cni
from netlib.verbs.inspect import journal_row
from netlib.verbs.verb import Verb
from netlib.wire.client import condition

__all__ = ["VERBS"]


def explain(controller: Controller, request: NameRequest) -> list[dict[str, Any]]:
    """Return the kernel objects of a network or a container, each with the shell commands that would make it."""
    record = _in_kernel(controller, request.name)
    plan = controller.plan_of(record) if record else cni.plan(controller, request.name)
    return [{"Object": str(item.key), "Commands": lines} for item, lines in reports.commands_of(controller, plan)]


def check(controller: Controller, request: NameRequest) -> list[dict[str, str]]:
    """Return how the kernel differs from the objects recorded for a network or a container; empty when it does not."""
    record = _in_kernel(controller, request.name)
    found = controller.check(record) if record else cni.drift(controller, request.name)
    return [{"Object": key, "Drift": difference} for key, difference in found]


def _in_kernel(controller: Controller, name: str) -> str:
    """Return the id of the network or sandbox that *name* stands for, or "" where *name* may be CNI's only.

    For a container it is the id of its own sandbox, or of the sandbox of the container whose network it shares. A whole name or
    id is preferred to the beginning of an id.
    """
    from netlib.runtime.lookup import find_container
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


def log(controller: Controller, request: LogRequest) -> list[dict[str, Any]]:
    """Return the last operations of the journal, oldest first."""
    if request.limit < 1:
        raise ConfigError(f"-n {request.limit} shows no operation at all; give a number of at least 1")
    return [journal_row(entry) for entry in controller.journal(request.limit)]


def system_reset(controller: Controller, _: NoRequest) -> None:
    """Remove all containers, endpoints, sandboxes and networks, in this order, and restore changed sysctls."""
    from netlib.verbs.container import remove_all

    remove_all(controller)
    controller.reset()


def system_backup(controller: Controller, request: BackupRequest) -> None:
    """Copy the store, as it is at one moment, to the absolute path of a file; other verbs may run meanwhile."""
    copy_store(controller.store.path, Path(request.file), replace=request.replace)


def system_info(controller: Controller, _: NoRequest) -> dict[str, Any]:
    """Return counts of records, folders, versions, and the state of netlibd and its servants."""
    return {
        "Version": __version__,
        "Networks": len(controller.networks()),
        "Sandboxes": len(controller.sandboxes()),
        "Endpoints": len(controller.endpoints()),
        "StateDir": str(controller.config.state_dir),
        "RunDir": str(controller.config.run_dir),
        "StoreSchema": len(MIGRATIONS),
        "FirewallBackend": BACKEND,
        "KernelVersion": platform.release(),
        "Architecture": platform.machine(),
        "ServedBy": os.getpid(),
        "Netlibd": condition(controller.config),
        "SettingsFile": controller.host.settings_file.path,
        "SettingsFault": str(controller.host.settings_fault or ""),
        "SettingsWithoutEffect": list(controller.host.settings_file.known.without_effect),
        "PendingRemovals": _pending_removals(controller),
        "Servants": controller.watcher.health() if isinstance(controller.watcher, ReportsHealth) else {},
    }


def _pending_removals(controller: Controller) -> dict[str, str]:
    """Return what is left of each record that is being removed, or whose removal failed: the next command tries again."""
    with controller.store.read() as tx:
        rows = [row for record, _, _ in tx.in_flight() if (row := tx.by_id(record)) is not None and row.phase is Phase.REMOVING]
        return {
            f"{row.kind} {row.id[:12] if isinstance(row.value, Endpoint) else row.name}": ", ".join(
                item.written if isinstance(item, Unreadable) else str(item.key) for item in tx.objects(row.id)
            )
            for row in rows
        }


def version(_: Controller, _request: NoRequest) -> dict[str, str]:
    """Return the versions of netlib, Python and the kernel in the process that performs the verb."""
    return {"Version": __version__, "Python": platform.python_version(), "KernelVersion": platform.release()}


VERBS = {
    "explain": Verb(NameRequest, explain),
    "check": Verb(NameRequest, check),
    "log": Verb(LogRequest, log),
    "system.backup": Verb(BackupRequest, system_backup),
    "system.reset": Verb(NoRequest, system_reset),
    "system.info": Verb(NoRequest, system_info),
    "version": Verb(NoRequest, version),
}
