"""Creating and removing sandboxes."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from netlib.core.session import Session, chunks, membership_event
from netlib.dns.resolvconf import check_resolver
from netlib.errors import AlreadyExists, ConfigError
from netlib.kernel.netns import current_identity, identity_of_path, netns_dir
from netlib.kernel.sysctl import asked_sysctls
from netlib.model import Event, NetnsRef, Sandbox
from netlib.names import check_domainname, check_hostname, check_sandbox_name, new_id
from netlib.requests import SandboxRequest
from netlib.store.records import Transaction

__all__ = ["DNS_PORTS", "create_sandbox", "remove_sandboxes"]

DNS_PORTS = range(61000, 65536)  # above the default ephemeral ports, so the kernel gives none of these to a socket inside


def create_sandbox(session: Session, request: SandboxRequest) -> Sandbox:
    """Create the sandbox that *request* describes; an error leaves the kernel and the records unchanged.

    Raises AlreadyExists when a sandbox or a netns has the name, or another sandbox has the netns; ConfigError.
    """
    name, netns, settings = request.name, request.netns, _checked(request)
    sandbox_id = request.sandbox_id or new_id()
    identity = identity_of_path(netns) if netns else ""
    if identity == current_identity():
        raise ConfigError(f"{netns} is the network namespace of the host itself; use the network host to share it")
    with (
        session.operation("sandbox create", name, _event("create", sandbox_id, name)) as operation,
        session.lifecycle.working_on([sandbox_id], f"creating sandbox {name}"),
        session.engine.kernel(sandbox_id) as kernel,
    ):
        resolver = session.host.settings.resolver(request.resolver)
        sandbox = Sandbox(
            id=sandbox_id,
            name=name,
            created=time.time(),
            netns=kernel.new_netns(str(netns_dir(session.config.run_dir) / name))
            if netns is None
            else NetnsRef(netns, identity),
            owned=netns is None,
            hostname=request.hostname or sandbox_id[:12],
            domainname=request.domainname,
            resolver=resolver,
            dns_port=random_dns_port(),
            files_dir=str(session.config.sandbox_dir / sandbox_id),
            sysctls=tuple(settings.items()),
            cni_container=request.cni_container,
        )
        return session.lifecycle.create_sandbox(kernel, sandbox, lambda tx: _check_free(tx, sandbox), finish=operation.finish)


def remove_sandboxes(session: Session, references: Sequence[str | Sandbox]) -> None:
    """Remove sandboxes with their endpoints, up to 200 in one firewall transaction and one link request.

    Raises NotFound before anything is removed; TeardownError for what could not be removed, after all else is.
    """
    with session.store.read() as tx:
        boxes = [session.find_sandbox(tx, reference) for reference in references]
        left = [(network, row.value) for row in boxes for network, _ in tx.memberships(row.id)]
    names = ", ".join(row.name for row in boxes)
    ids = [row.id for row in boxes]
    events = [membership_event("disconnect", network, box) for network, box in left]
    events += (_event("destroy", row.id, row.name) for row in boxes)
    with session.operation("sandbox rm", names, *events):
        session.take_down(chunks(ids), f"removing {names}")
    session.watcher.changed(sandboxes=ids, networks=(), needed=False)


def _event(action: str, sandbox: str, name: str) -> Event:
    return Event(type="sandbox", action=action, id=sandbox, attributes={"name": name})


def _checked(request: SandboxRequest) -> dict[str, str]:
    """Raise ConfigError for a name, resolver or sysctl of *request* that is not valid; return the sysctls by their paths."""
    check_sandbox_name(request.name)
    if request.hostname:
        check_hostname(request.hostname)
    if request.domainname:
        check_domainname(request.domainname)
    check_resolver(request.resolver)
    settings = asked_sysctls(request.sysctls)
    if settings and request.netns is not None:
        raise ConfigError(f"sysctls {', '.join(settings)} not allowed: the network namespace is not the sandbox's own")
    return settings


def _check_free(tx: Transaction, sandbox: Sandbox) -> None:
    """Raise AlreadyExists where the name of *sandbox* or its netns is in use."""
    taken = tx.find_named(Sandbox, sandbox.name)
    if taken is not None:
        raise AlreadyExists(
            f"the name {sandbox.name!r} is in use by sandbox {taken.id[:12]}; choose another, or remove that one",
            name=sandbox.name,
            holder=taken.name,
            holder_kind="sandbox",
        )
    if sandbox.owned and Path(sandbox.netns.path).exists():
        raise AlreadyExists(
            f"a network namespace {sandbox.name!r} that is not ours exists; choose another name, or `ip netns del` it",
            name=sandbox.name,
        )
    other = None if sandbox.owned or sandbox.netns.is_host else tx.sandbox_in(sandbox.netns.identity)
    if other is not None:
        raise AlreadyExists(
            f"the network namespace at {sandbox.netns.path} is that of sandbox {other.name!r}; use that one",
            holder=other.name,
            holder_kind="sandbox",
        )


def random_dns_port() -> int:
    """Choose the port at 127.0.0.11 on which netlibd listens in a sandbox."""
    return DNS_PORTS[int.from_bytes(os.urandom(4), "big") % len(DNS_PORTS)]  # the import of random takes 2 ms
