"""The verbs of containers by name, JSON in and JSON out, beside those of :mod:`netlib.verbs.perform`.

Arguments are the texts that people type. What passes a container's input and output (``logs``, ``exec``, ``attach``, ``wait``)
is no verb: it changes nothing, so the command line asks :class:`netlib.runtime.container.Runtime` itself.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from netlib.codec import to_builtins
from netlib.core.controller import Controller
from netlib.errors import ConfigError, NotFound, TeardownError
from netlib.model import Endpoint, IPAddress, ResolverConfig
from netlib.names import parse_address, parse_labels, parse_link, parse_options
from netlib.runtime import service
from netlib.runtime.spec import Container, ContainerSpec, NetworkAttachment, parse_signal, parse_sysctls, parse_volume
from netlib.verbs.inspect import network_settings, ports
from netlib.verbs.inspect_container import container_details, container_row


def container_run(
    controller: Controller,
    *,
    fds: Sequence[int] = (),
    size: Sequence[int] = (0, 0),
    **wanted: Any,
) -> dict[str, Any]:
    """Create a container and start it; the keywords are those of :func:`read_spec`.

    A descriptor in *fds* is the minder's end of :func:`netlib.runtime.attach.pair`. Answers with the id and warnings.
    """
    spec = read_spec(**wanted)
    rows, columns = size
    client = socket.socket(fileno=os.dup(fds[0])) if fds else None
    try:
        container = service.run_container(controller, spec, client=client, size=(rows, columns))
    finally:
        if client is not None:
            client.close()
    return {"Id": container.container_id, "Name": container.name, "Warnings": service.warnings(controller, spec)}


def read_spec(
    *,
    command: Sequence[str],
    name: str = "",
    rootfs: str = "",
    hostname: str = "",
    domainname: str = "",
    environment: Mapping[str, str] | None = None,
    workdir: str = "",
    user: str = "",
    tty: bool = False,
    stdin: bool = False,
    auto_remove: bool = False,
    volumes: Sequence[str] = (),
    networks: Sequence[str] = (),
    aliases: Sequence[str] = (),
    ip: str = "",
    ip6: str = "",
    mac: str = "",
    links: Sequence[str] = (),
    publish: Sequence[str] = (),
    dns: Sequence[str] = (),
    dns_search: Sequence[str] = (),
    dns_options: Sequence[str] = (),
    add_hosts: Sequence[str] = (),
    sysctls: Sequence[str] = (),
    labels: Sequence[str] = (),
    stop_signal: str = "TERM",
    stop_seconds: float = 10.0,
) -> ContainerSpec:
    """The request that these texts make; raises ConfigError for what is malformed.

    *aliases*, *ip*, *ip6*, *mac* and *links* belong to the first network. A network may be ``name=web,ip=…``, as in Docker.
    """
    first = NetworkAttachment(network="", aliases=tuple(aliases), ip=ip, ip6=ip6, mac=mac, links=tuple(map(parse_link, links)))
    attachments, netns_of = _attachments(networks, first)
    return ContainerSpec(
        command=tuple(command),
        name=name,
        rootfs=os.path.abspath(rootfs) if rootfs else "",
        hostname=hostname,
        domainname=domainname,
        environment=dict(environment or {}),
        workdir=workdir,
        user=user,
        tty=tty,
        stdin=stdin,
        auto_remove=auto_remove,
        volumes=tuple(parse_volume(text) for text in volumes),
        networks=attachments,
        netns_of=netns_of,
        publish=tuple(publish),
        resolver=_resolver(dns, dns_search, dns_options, add_hosts),
        sysctls=parse_sysctls(sysctls),
        labels=parse_labels(labels),
        stop_signal=parse_signal(stop_signal),
        stop_seconds=stop_seconds,
    )


def _attachments(texts: Sequence[str], first: NetworkAttachment) -> tuple[tuple[NetworkAttachment, ...], str]:
    """Read all ``--network``, *first* being what else was said of the first: the attachments, or whose netns it is."""
    found = [_attachment(text) for text in texts or ("bridge",)]
    name = found[0].network
    if name.startswith("container:"):
        if len(found) > 1 or name == "container:":
            raise ConfigError("--network container:NAME names one container and stands alone")
        if first != NetworkAttachment(network=""):
            raise ConfigError("--network container:NAME takes no addresses, aliases or links of its own")
        return (), name.removeprefix("container:")
    found[0] = replace(
        found[0],
        aliases=(*found[0].aliases, *first.aliases),
        ip=first.ip or found[0].ip,
        ip6=first.ip6 or found[0].ip6,
        mac=first.mac or found[0].mac,
        links=first.links,
    )
    return tuple(found), ""


_ATTACHMENT_KEYS = ("name", "alias", "ip", "ip6", "mac-address", "gw-priority", "driver-opt")


def _attachment(text: str) -> NetworkAttachment:
    """Read one ``--network``: a name, or ``key=value`` pairs separated by commas."""
    if "=" not in text:
        return NetworkAttachment(network=text)
    values: dict[str, list[str]] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in _ATTACHMENT_KEYS or not value:
            raise ConfigError(f"--network {text!r}: {item!r} is none of {', '.join(f'{key}=…' for key in _ATTACHMENT_KEYS)}")
        values.setdefault(key, []).append(value)
    single = {key: items[-1] for key, items in values.items()}
    if "name" not in single:
        raise ConfigError(f"--network {text!r} does not say which one: name=… is missing")
    priority = single.get("gw-priority", "0")
    if not priority.lstrip("-").isdecimal():
        raise ConfigError(f"--network {text!r}: gw-priority must be a whole number")
    return NetworkAttachment(
        network=single["name"],
        aliases=tuple(values.get("alias", ())),
        ip=single.get("ip", ""),
        ip6=single.get("ip6", ""),
        mac=single.get("mac-address", ""),
        gw_priority=int(priority),
        options=parse_options(values.get("driver-opt", ())),
    )


def _resolver(dns: Sequence[str], search: Sequence[str], options: Sequence[str], hosts: Sequence[str]) -> ResolverConfig:
    return ResolverConfig(
        servers=tuple(parse_address(text, "--dns") for text in dns),
        search=tuple(search),
        options=tuple(options),
        extra_hosts=tuple(_extra_host(text) for text in hosts),
    )


def _extra_host(text: str) -> tuple[str, IPAddress]:
    separator = "=" if "=" in text else ":"
    name, _, address = text.partition(separator)
    if not name or not address:
        raise ConfigError(f"--add-host {text!r} is malformed; write it like NAME:ADDRESS")
    return name, parse_address(address.removeprefix("[").removesuffix("]"), f"--add-host {text!r}: address")


def container_start(
    controller: Controller, *, name: str, fds: Sequence[int] = (), size: Sequence[int] = (0, 0)
) -> dict[str, str]:
    """Start a container that does not run."""
    rows, columns = size
    client = socket.socket(fileno=os.dup(fds[0])) if fds else None
    try:
        container = service.start_container(controller, name, client=client, size=(rows, columns))
    finally:
        if client is not None:
            client.close()
    return {"Id": container.container_id, "Name": container.name}


def container_stop(controller: Controller, *, name: str, seconds: float | None = None, signal: str = "") -> dict[str, int]:
    """Stop a container; answer with its exit code."""
    state = service.stop_container(controller, name, seconds=seconds, number=parse_signal(signal) if signal else None)
    return {"ExitCode": state.code}


def container_kill(controller: Controller, *, name: str, signal: str = "KILL") -> None:
    """Send a signal to a container's process 1."""
    service.kill_container(controller, name, parse_signal(signal))


def container_rm(controller: Controller, *, names: Sequence[str], force: bool = False) -> None:
    """Remove containers, all of them or none."""
    going = [service.find_container(controller, name, half_removed=True) for name in names]
    service.remove_containers(controller, going, force=force)


def container_reap(controller: Controller, *, name: str) -> None:
    """Clear away an ended container; its minder asks for it."""
    service.reap_container(controller, name)


def container_ls(controller: Controller, *, all_states: bool = False) -> list[dict[str, str]]:
    """The containers that run, or all of them, newest first."""
    service.refuse_unknown(controller)
    now = time.time()
    own = service.runtime(controller)
    networks = {network.id: network for network in controller.networks()}
    rows = []
    for container in sorted(service.containers(controller), key=lambda item: -item.created):
        state = own.state(container)
        if all_states or state.running:
            joined = [(networks[item.network], item) for item in _endpoints(controller, container) if item.network in networks]
            rows.append(container_row(container, state, ports(joined), now))
    return rows


def container_inspect(controller: Controller, *, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every named container."""
    return [_details(controller, service.find_container(controller, name)) for name in names]


def container_record(controller: Controller, *, name: str) -> Any:
    """The record itself, for a caller that goes on with :class:`netlib.runtime.container.Runtime`."""
    return to_builtins(service.find_container(controller, name))


def remove_all(controller: Controller) -> None:
    """Kill and remove every container; part of ``system reset``. Raises TeardownError for what would not go."""
    service.remove_containers(controller, service.containers(controller), force=True)
    if failures := service.finish(controller):
        raise TeardownError(failures)


def _details(controller: Controller, container: Container) -> dict[str, Any]:
    own = service.runtime(controller)
    try:
        sandbox = controller.sandbox(container.container_id)
    except NotFound:
        settings: dict[str, Any] = {"SandboxID": "", "SandboxKey": "", "Ports": {}, "Networks": {}}
    else:
        networks = {network.id: network for network in controller.networks()}
        settings = network_settings(sandbox, _endpoints(controller, container), networks)
    return container_details(container, own.state(container), folder=str(own.folder(container)), settings=settings)


def _endpoints(controller: Controller, container: Container) -> list[Endpoint]:
    if container.netns is None or not container.owns_sandbox:
        return []
    try:
        return controller.endpoints(sandbox=container.container_id)
    except NotFound:  # it ends just now
        return []


VERBS: dict[str, Callable[..., Any]] = {
    "container.run": container_run,
    "container.start": container_start,
    "container.stop": container_stop,
    "container.kill": container_kill,
    "container.rm": container_rm,
    "container.reap": container_reap,
    "container.ls": container_ls,
    "container.inspect": container_inspect,
    "container.record": container_record,
}
