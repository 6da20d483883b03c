"""Every plugin type with what no runtime should send: an answer or a well-formed error, and after an error nothing is changed.

Configurations are valid ones with some values exchanged, taken away or renamed. A call goes in-process, as netlibd does it, or
by a launcher. ``make soak`` runs thousands, ``make test`` some hundred.
"""

import copy
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_plugins import dhcp
from cni_plugins.install import install
from cni_plugins.node import Node
from cni_plugins.protocol import VERSIONS, Code
from cni_plugins.run import perform
from cni_plugins.skel import Outcome
from cni_plugins.types import plugin_types
from netlib.config import Config
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller, Unwatched
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns
from netlib.model import NetnsRef
from netlib.testing.snapshot import Snapshot, differences, snapshot
from netlib.verbs.call import call
from netlib.wire.client import leave, start_daemon
from tests.unit.test_cni_fuzz import check_error, mutated

pytestmark = pytest.mark.soak

PART = float(os.environ.get("NETLIB_SOAK", "0.02"))
LONG = "LONG"  # stands for a text of 100,000 letters, which nobody wants to read in a failure
EMPTY, WIRED = "fuzz-empty", "fuzz-wired"  # containers: one without any link, one that a plugin before has given eth0
ADDRESSES = {
    "type": "static",
    "addresses": [{"address": "10.25.0.2/24", "gateway": "10.25.0.1"}, {"address": "fd25::2/64", "gateway": "fd25::1"}],
}
PREVIOUS = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "fuzz-br"},
        {"name": "fuzz-host"},
        {"name": "eth0", "mac": "02:11:22:33:44:55", "sandbox": f"/run/netns/{WIRED}"},
    ],
    "ips": [{"address": "10.25.0.2/24", "gateway": "10.25.0.1", "interface": 2}, {"address": "fd25::2/64", "interface": 2}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.25.0.1"}],
}
MAPPINGS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
]
KEYS: dict[str, dict[str, Any]] = {
    "bandwidth": {"prevResult": PREVIOUS, "ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000},
    "bridge": {
        "bridge": "fuzz-br",
        "isDefaultGateway": True,
        "forceAddress": True,
        "ipMasq": True,
        "hairpinMode": True,
        "mtu": 1400,
        "runtimeConfig": {"mac": "02:11:22:33:44:66", "ips": ["10.25.0.9/24"]},
        "ipam": {
            "type": "host-local",
            "dataDir": "LEASES",
            "resolvConf": "/etc/resolv.conf",
            "ranges": [
                [{"subnet": "10.25.0.0/24", "rangeStart": "10.25.0.5", "gateway": "10.25.0.1"}],
                [{"subnet": "fd25::/64"}],
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
        "args": {"cni": {"mac": "02:11:22:33:44:66"}},
    },
    "dhcp": {
        "ipam": {"type": "dhcp", "priority": 5, "request": [{"option": "routers"}], "provide": [{"option": "12", "value": "x"}]}
    },
    "dummy": {"ipam": ADDRESSES},
    "firewall": {"prevResult": PREVIOUS, "backend": "nftables", "ingressPolicy": "same-bridge"},
    "host-device": {"device": "fuzz-up", "ipam": ADDRESSES},
    "host-local": {"ipam": {"type": "host-local", "dataDir": "LEASES", "subnet": "10.25.0.0/24", "rangeEnd": "10.25.0.9"}},
    "ipvlan": {"master": "fuzz-up", "mode": "l3", "mtu": 1400, "ipam": ADDRESSES},
    "loopback": {},
    "macvlan": {"master": "fuzz-up", "mode": "private", "mtu": 1400, "mac": "02:11:22:33:44:66", "ipam": ADDRESSES},
    "netlib": {
        "network": "fuzz",
        "runtimeConfig": {"portMappings": MAPPINGS, "ips": ["10.26.0.9"], "aliases": {"a": ["b"]}},
    },
    "portmap": {
        "prevResult": PREVIOUS,
        "snat": True,
        "conditionsV4": ["-s", "10.0.0.0/8"],
        "runtimeConfig": {"portMappings": MAPPINGS},
    },
    "ptp": {"ipMasq": True, "mtu": 1400, "ipam": ADDRESSES, "dns": {"nameservers": ["10.25.0.1"]}},
    "sbr": {"prevResult": PREVIOUS, "table": 100},
    "static": {"ipam": ADDRESSES},
    "tap": {"mac": "02:11:22:33:44:66", "owner": 0, "group": 0, "multiQueue": True, "bridge": "fuzz-br", "ipam": ADDRESSES},
    "tuning": {
        "prevResult": PREVIOUS,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
        "mtu": 1400,
        "promisc": True,
        "dataDir": "LEASES",
    },
    "vlan": {"master": "fuzz-up", "vlanId": 5, "mtu": 1400, "ipam": ADDRESSES},
    "vrf": {"prevResult": PREVIOUS, "vrfname": "red", "table": 100},
}


def valid(kind: str) -> dict[str, Any]:
    """A configuration of that type, with every key that a call of any verb needs."""
    valid_attachments = {"cni.dev/valid-attachments": [{"containerID": "c9", "ifname": "eth0"}]}
    return {"cniVersion": "1.1.0", "name": "fuzz", "type": kind, **KEYS[kind], **valid_attachments}


def path_of(kind: str) -> str:
    """The netns of a container in which that type has something to do."""
    return str(NETNS_DIR / (WIRED if "prevResult" in KEYS[kind] else EMPTY))


class Seen(NamedTuple):
    """What netns hold, and what rows and files there are."""

    netns: list[Snapshot]
    rows: list[str]

    def unlike(self, before: "Seen") -> list[str]:
        """What has changed since *before*."""
        changes = [line for old, new in zip(before.netns, self.netns, strict=True) for line in differences(old, new)]
        return changes + sorted({*before.rows} ^ {*self.rows})


class Ground:
    """A host with a link to spare and two containers, in which calls are made and compared."""

    def __init__(self, folder: Path, controller: Controller) -> None:
        self.controller = controller
        self.leases = folder / "leases"
        self.paths = _paths(folder)

    def call(self, kind: str, verb: str, netns: str, stdin: bytes, ifname: str = "eth0", **more: str) -> Outcome:
        """As a launcher and netlibd do it."""
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": "/nonexistent",
            **more,
        }
        fd = _opened(netns)
        try:
            return perform(kind, environ, stdin, Node(lambda: self.controller, fd))
        finally:
            if fd is not None:
                os.close(fd)

    def look(self) -> "Seen":
        """All that a call could change."""
        with self.controller.store.read() as tx:
            rows = tx.db.execute(
                "SELECT id, phase FROM record UNION ALL SELECT record, key FROM object ORDER BY 1, 2"
            ).fetchall()
        files = sorted(str(path) for path in self.leases.rglob("*") if path.is_file() and path.name[0].isdigit())
        containers = [snapshot(NetnsRef(f"/run/netns/{name}")) for name in (EMPTY, WIRED)]
        return Seen([snapshot(), *containers], [*map(str, rows), *files])

    def clear(self) -> None:
        """Take away what a call that succeeded made."""
        attachments = Attachments(self.controller)
        for item in attachments.networks():
            for kind in plugin_types():
                attachments.collect(item.name, kind, ())
        attachments.prune()


def _opened(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None


def _paths(folder: Path) -> dict[str, str]:
    """What CNI_NETNS might lead to besides a netns."""
    odd = folder / "odd"
    odd.mkdir()
    os.mkfifo(odd / "fifo")
    (odd / "loop").symlink_to(odd / "loop")
    (odd / "file").write_text("")  # as a deleted netns may leave
    (odd / "link").symlink_to(NETNS_DIR / EMPTY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(odd / "socket"))
    made = {path.name: str(path) for path in odd.iterdir()}
    others = {kind: f"/proc/1/ns/{kind}" for kind in ("mnt", "user", "pid", "ipc", "uts", "cgroup", "time")}
    return {
        **made,
        **others,
        "own": "/proc/self/ns/net",
        "nothing": "",
        "gone": "/run/netns/never-was",
        "folder": str(odd),
        "device": "/dev/zero",
        "terminal": "/dev/tty",
        "long": "/run/" + "x" * 5000,
        "relative": "../../proc/self/ns/net",
        "zero byte": f"/run/netns/{EMPTY}\0",
        "no UTF-8": "/run/netns/\udcff",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def ground(folder: Path) -> Iterator[Ground]:
    run_ip("link", "add", "fuzz-up", "type", "veth", "peer", "name", "fuzz-peer")
    for name in (EMPTY, WIRED):
        create_netns(NETNS_DIR / name)
        for state in ("up", "down"):  # the kernel's own address of lo comes with the first time that it is up, and stays
            run_ip("-n", name, "link", "set", "lo", state)
    run_ip("link", "add", "fuzz-host", "type", "veth", "peer", "name", "eth0", "netns", WIRED)
    run_ip("-n", WIRED, "addr", "add", "10.25.0.2/24", "dev", "eth0")
    run_ip("-n", WIRED, "addr", "add", "fd25::2/64", "dev", "eth0", "nodad")
    for where in (("link", "set", "fuzz-host"), ("-n", WIRED, "link", "set", "eth0")):
        run_ip(*where, "up")
    try:
        with pytest.MonkeyPatch.context() as patch, Controller(_config(folder), watcher=Unwatched()) as controller:
            patch.setattr(dhcp, "SECONDS", 0.05)
            controller.create_network("fuzz", subnets=["10.26.0.0/24"])
            yield Ground(folder, controller)
            controller.reset()
    finally:
        for link in ("fuzz-up", "fuzz-host"):
            run_ip("link", "del", link)
        for name in (EMPTY, WIRED):
            delete_netns(NETNS_DIR / name)


def _config(folder: Path) -> Config:
    return Config(state_dir=folder / "state", run_dir=folder / "run")


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def check_call(ground: Ground, kind: str, verb: str, netns: str, document: Any, **more: str) -> None:
    """Make one call: it succeeds, or says well what is wrong and changes nothing; what it made can be taken away."""
    before = ground.look()
    stdin = document if isinstance(document, bytes) else json.dumps(document).encode()
    stdin = stdin.replace(b"LEASES", str(ground.leases).encode())
    outcome = ground.call(kind, verb, netns, stdin, **more)
    if outcome.code:
        check_error(outcome)
        assert ground.look().unlike(before) == [], outcome
        return
    assert verb == "ADD" or outcome.stdout == b"" or verb == "VERSION"
    if verb == "ADD":
        assert json.loads(outcome.stdout)["cniVersion"] in VERSIONS
        deleted = ground.call(kind, "DEL", netns, stdin, **more)
        assert deleted.code == 0, deleted
    ground.clear()
    assert ground.look().unlike(before) == [], outcome


def fuzzed(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=max(20, round(examples * PART)),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def _unfolded(value: str) -> str:
    return value.replace(LONG, "x" * 100_000)


verbs = st.sampled_from(["ADD", "ADD", "DEL", "CHECK", "GC", "STATUS"])
kinds = st.sampled_from(plugin_types())


def test_every_type_is_here() -> None:
    assert set(KEYS) == set(plugin_types())


@pytest.mark.parametrize("kind", plugin_types())
def test_the_valid_configurations_are_not_refused_for_what_they_say(ground: Ground, kind: str) -> None:
    """Else what is made of them would go no deeper than the first check."""
    stdin = json.dumps(valid(kind)).replace("LEASES", str(ground.leases)).encode()
    outcome = ground.call(kind, "ADD", path_of(kind), stdin)
    refused = {code.value for code in Code if code.value < Code.TRY_AGAIN}
    assert outcome.code == 0 or json.loads(outcome.stdout)["code"] not in refused, outcome
    ground.clear()


@fuzzed(5000)
@given(kind=kinds, verb=verbs, data=st.data())
def test_configurations_that_are_nearly_right(ground: Ground, kind: str, verb: str, data: st.DataObject) -> None:
    check_call(ground, kind, verb, path_of(kind), data.draw(mutated(valid(kind))))


@fuzzed(2500)
@given(kind=kinds, verb=verbs, data=st.data())
def test_netns_that_are_none(ground: Ground, kind: str, verb: str, data: st.DataObject) -> None:
    path = ground.paths[data.draw(st.sampled_from(sorted(ground.paths)))]
    check_call(ground, kind, verb, path, copy.deepcopy(valid(kind)))


@fuzzed(2500)
@given(
    kind=kinds,
    verb=verbs,
    variable=st.sampled_from(["CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_NETNS_OVERRIDE"]),
    value=st.text(max_size=20)
    | st.sampled_from(["", LONG, "IP=10.25.0.3/24;MAC=02:11:22:33:44:77", "K8S_POD_NAME=a;IgnoreUnknown=1", "lo"]),
)
def test_environments(ground: Ground, kind: str, verb: str, variable: str, value: str) -> None:
    value = _unfolded(value)
    if variable == "CNI_IFNAME":
        check_call(ground, kind, verb, path_of(kind), valid(kind), ifname=value)
    else:
        check_call(ground, kind, verb, path_of(kind), valid(kind), **{variable: value})


@pytest.fixture(scope="module")
def launchers(ground: Ground, folder: Path) -> Iterator[tuple[Config, list[Path]]]:
    """Of either kind, and a netlibd with a store of its own behind them."""
    config = Config(state_dir=folder / "served", run_dir=folder / "served-run")
    for kind in ("c", "python"):
        install(folder / kind, config, launcher="c" if kind == "c" else "python")
    start_daemon(config)
    yield config, [folder / "c", folder / "python"]
    leave(config)


_bytes = st.binary(max_size=30).map(lambda value: value.replace(b"\0", b"")) | st.sampled_from(
    [b"", LONG.encode(), b"\xff\xfe"]
)


@fuzzed(2000)
@given(
    kind=kinds,
    verb=verbs,
    number=st.integers(0, 1),
    odd=st.dictionaries(
        st.sampled_from(["CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS", "CNI_NETNS", "CNI_PATH", "X"]), _bytes, min_size=1
    ),
    stdin=st.binary(max_size=50) | st.none(),
)
def test_bytes_by_launchers(
    ground: Ground,
    launchers: tuple[Config, list[Path]],
    kind: str,
    verb: str,
    number: int,
    odd: dict[str, bytes],
    stdin: bytes | None,
) -> None:
    """As a process gets them: names that are no text, and values as long as the kernel lets them be."""
    before = ground.look()
    usual = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": path_of(kind), "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}
    environ = {os.fsencode(name): os.fsencode(value) for name, value in {**usual, "PATH": os.environ["PATH"]}.items()}
    environ |= {name.encode(): _unfolded(value.decode("latin-1")).encode("latin-1") for name, value in odd.items()}
    document = json.dumps(valid(kind)).replace("LEASES", str(ground.leases)).encode() if stdin is None else stdin
    config, folders = launchers
    command = [folders[number] / kind]
    done = subprocess.run(command, env=environ, input=document, capture_output=True, timeout=50, check=False)
    outcome = Outcome(done.stdout, done.returncode, done.stderr)
    if outcome.code:
        check_error(outcome)
    else:
        assert b"Traceback" not in outcome.stderr
    if outcome.code == 0 and verb == "ADD":
        again = {**environ, b"CNI_COMMAND": b"DEL"}
        assert subprocess.run(command, env=again, input=document, capture_output=True, timeout=50, check=False).returncode == 0
        call(config, "cni.prune", {})
    assert ground.look().unlike(before) == [], outcome
