"""Records of containers, found by what people call them, and the runtime that has their processes and files."""

from netlib.core.controller import Controller
from netlib.core.session import no_container
from netlib.errors import NotFound
from netlib.model import Event, Phase, Sandbox
from netlib.runtime.container import Runtime
from netlib.runtime.spec import Container
from netlib.store.kinds import Kind, register

register(Kind("container", Container, -1, recovered=False))

__all__ = ["containers", "described", "event", "find_again", "find_container", "runtime", "write_record"]


def runtime(controller: Controller) -> Runtime:
    """Return the runtime of the controller's host."""
    return Runtime(controller.config)


def event(action: str, container: Container, **more: str) -> Event:
    """Return the event that *action* (Docker's word) happened to *container*; *more* are further attributes."""
    attributes = {"name": container.name, "image": container.spec.rootfs, **container.spec.labels, **more}
    return Event(type="container", action=action, id=container.container_id, attributes=attributes)


def containers(controller: Controller) -> list[Container]:
    """Return the records of all containers, sorted by name."""
    with controller.store.read() as tx:
        return [row.value for row in tx.all(Container) if row.phase is Phase.READY]


def find_container(controller: Controller, reference: str, *, half_removed: bool = False) -> Container:
    """Return the container with that name, id or unambiguous beginning of an id; NotFound else.

    A container whose removal failed is NotFound too, unless the caller, who removes it again, asks for the *half_removed*.
    """
    with controller.store.read() as tx:
        row = tx.find(Container, reference)
        sandbox = tx.find(Sandbox, reference) if row is None else None
    if sandbox is not None:
        raise NotFound(
            f"container {reference!r} not found, only {described(sandbox.value)}", kind="container", reference=reference
        )
    if row is None or (row.phase is Phase.REMOVING and not half_removed):
        raise no_container(reference)
    return row.value


def described(sandbox: Sandbox) -> str:
    """Describe, in an error, a sandbox without a container of this runtime: whose it is, and what removes it."""
    if sandbox.cni_container:
        return f"sandbox {sandbox.name!r} of CNI container {sandbox.cni_container[:12]} (its runtime removes it)"
    return f"sandbox {sandbox.name!r} of a Python program (`Controller.remove_sandbox`)"


def find_again(controller: Controller, container: Container) -> Container:
    """Read a container's record again, now that its lock is held; NotFound when it was removed before the lock was taken."""
    with controller.store.read() as tx:
        row = tx.by_id(container.id)
    if row is None or row.phase is Phase.REMOVING:
        raise NotFound(f"container {container.name!r} was removed meanwhile; `netlib ps -a` lists what there is")
    found: Container = row.value
    return found


def write_record(controller: Controller, container: Container) -> Container:
    """Write *container* in the place of its record, and return it."""
    with controller.store.write() as tx:
        tx.replace(container)
    return container
