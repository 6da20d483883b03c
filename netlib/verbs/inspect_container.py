"""Containers in Docker's JSON, for ``ps`` and ``inspect``. Pure."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from netlib.kernel.sysctl import sysctl_name
from netlib.ports import PortRequest
from netlib.runtime.container import State
from netlib.runtime.spec import Container
from netlib.verbs.inspect import duration, timestamp

_NEVER = "0001-01-01T00:00:00Z"


def container_row(
    container: Container, state: State, ports: Mapping[str, Sequence[Mapping[str, str]]], now: float
) -> dict[str, str]:
    """Return one line of ``ps``; every value is text, as in ``docker ps --format json``."""
    spec = container.spec
    return {
        "Command": shlex.join(spec.command),
        "CreatedAt": timestamp(container.created),
        "ID": container.container_id,
        "Image": spec.rootfs or "(host)",
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(spec.labels.items())),
        "Mounts": ",".join(volume.source for volume in spec.volumes),
        "Names": container.name,
        "Networks": ",".join([f"container:{spec.netns_of}"] if spec.netns_of else [item.network for item in spec.networks]),
        "Ports": ", ".join(_port(key, place) for key, places in ports.items() for place in places),
        "RunningFor": f"{duration(now - container.created)} ago",
        "State": state.status,
        "Status": status_text(state, now),
    }


def _port(key: str, place: Mapping[str, str]) -> str:
    host = f"[{place['HostIp']}]" if ":" in place["HostIp"] else place["HostIp"]
    return f"{host}:{place['HostPort']}->{key}"


def status_text(state: State, now: float) -> str:
    """Return a container's state in words: ``Up 5 minutes``, ``Exited (0) 2 hours ago``, ``Created``."""
    if state.running:
        return f"Up {duration(now - state.started)}"
    if state.status == "exited":
        return f"Exited ({state.code}) {duration(now - state.finished)} ago"
    return "Created"


def container_details(container: Container, state: State, *, folder: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``inspect`` shows of a container; *settings* are its NetworkSettings, *folder* holds its files."""
    spec = container.spec
    return {
        "Id": container.container_id,
        "Created": timestamp(container.created),
        "Path": spec.command[0],
        "Args": list(spec.command[1:]),
        "State": _state(state),
        "Image": spec.rootfs,
        "ResolvConfPath": f"{container.files_dir}/resolv.conf" if container.files_dir else "",
        "HostnamePath": f"{container.files_dir}/hostname" if container.files_dir else "",
        "HostsPath": f"{container.files_dir}/hosts" if container.files_dir else "",
        "LogPath": f"{folder}/container.log",
        "Name": f"/{container.name}",
        "Driver": "overlay2",
        "Platform": "linux",
        "HostConfig": _host_config(container),
        "GraphDriver": {"Name": "overlay2", "Data": {"LowerDir": spec.rootfs or "/", "UpperDir": f"{folder}/upper"}},
        "Mounts": [
            {
                "Type": "bind",
                "Source": volume.source,
                "Destination": volume.target,
                "Mode": "ro" if volume.readonly else "",
                "RW": not volume.readonly,
                "Propagation": "rprivate",
            }
            for volume in spec.volumes
        ],
        "Config": _config(container),
        "NetworkSettings": dict(settings),
    }


def _state(state: State) -> dict[str, Any]:
    return {
        "Status": state.status,
        "Running": state.running,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": False,
        "Dead": False,
        "Pid": state.pid,
        "ExitCode": state.code,
        "Error": state.error,
        "StartedAt": timestamp(state.started) if state.started else _NEVER,
        "FinishedAt": timestamp(state.finished) if state.finished else _NEVER,
    }


def _host_config(container: Container) -> dict[str, Any]:
    spec = container.spec
    return {
        "Binds": [f"{volume.source}:{volume.target}" + (":ro" if volume.readonly else "") for volume in spec.volumes],
        "NetworkMode": f"container:{spec.netns_of}" if spec.netns_of else spec.networks[0].network if spec.networks else "none",
        "PortBindings": _port_bindings(spec.publish),
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": spec.auto_remove,
        "LogConfig": {"Type": "json-file", "Config": {}},
        "Dns": [str(server) for server in spec.resolver.servers],
        "DnsOptions": list(spec.resolver.options),
        "DnsSearch": list(spec.resolver.search),
        "ExtraHosts": [f"{name}:{address}" for name, address in spec.resolver.extra_hosts],
        "Sysctls": {sysctl_name(path): value for path, value in spec.sysctls.items()},
        "ShmSize": 64 << 20,
        "Privileged": False,
        "ReadonlyRootfs": False,
    }


def _port_bindings(ports: Sequence[PortRequest]) -> dict[str, list[dict[str, str]]]:
    """Return the ``-p`` options by container port; an empty host port stands for any free port."""
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        span = f"{port.host_port_first}-{port.host_port_last}"
        hosts = str(port.host_port_first) if port.is_fixed else span if port.host_port_first else ""
        place = {"HostIp": str(port.host_ip or ""), "HostPort": hosts}
        found.setdefault(f"{port.container_port}/{port.protocol}", []).append(place)
    return found


def _config(container: Container) -> dict[str, Any]:
    spec = container.spec
    return {
        "Hostname": container.hostname,
        "Domainname": spec.domainname,
        "User": spec.user,
        "Tty": spec.tty,
        "OpenStdin": spec.stdin,
        "Env": [f"{name}={value}" for name, value in container.environment.items()],
        "Cmd": list(spec.command),
        "WorkingDir": spec.workdir,
        "Labels": dict(spec.labels),
    }
