"""The promises of a bridge network on whatever kernel there is: this one, Debian's, one without IPv6, one without br_netfilter.

::

    lan 192.0.2.2 ── 192.0.2.1 host ─── bridge ─┬─ a, which publishes its port 80 as 8080
                                                └─ b
"""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest

from netlib.config import Config
from netlib.core.controller import Controller
from netlib.errors import FeatureMissing
from netlib.kernel.links import kernel_has_ipv6
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.ports import parse_publish
from netlib.testing.snapshot import differences, snapshot
from netlib.wire.client import leave
from tests.kernel.frames import Ears, datagram, send

_HOST, _LAN = "192.0.2.1", "192.0.2.2"
_PATIENCE, _SILENCE = 5.0, 1.5  # seconds for what must answer, and after which what did not answer is taken to be closed


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config) as controller:
        yield controller
        controller.reset()
    leave(config)


@pytest.fixture
def lan(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    """A machine outside, with a way to every network through the host."""
    netns = netns_factory("lan")
    name = Path(netns.path).name
    for line in (
        f"ip link add uplink type veth peer name eth0 netns {name}",
        *(["ip link set uplink addrgenmode none"] if kernel_has_ipv6() else []),  # one made up would come when it likes
        f"ip address add {_HOST}/24 dev uplink",
        "ip link set uplink up",
        f"ip -n {name} address add {_LAN}/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"ip -n {name} route add 10.0.0.0/8 via {_HOST}",
    ):
        subprocess.run(line.split(), check=True)
    return netns


def _reaches(netns: NetnsRef, address: str, port: int, seconds: float = _PATIENCE) -> bool:
    with entered(netns):
        try:
            socket.create_connection((address, port), timeout=seconds).close()
        except (TimeoutError, OSError):
            return False
    return True


def _serving(netns: NetnsRef, port: int) -> socket.socket:
    with entered(netns):
        return socket.create_server(("0.0.0.0", port))


@pytest.mark.vm("ordinary", "bare")
def test_names_published_ports_and_the_way_out(controller: Controller, lan: NetnsRef) -> None:
    before = snapshot()
    controller.create_network("web", subnets=["10.84.0.0/24"])
    a, b = controller.create_sandbox("a").netns, controller.create_sandbox("b").netns
    controller.connect("web", "a", ports=parse_publish("8080:80"))
    controller.connect("web", "b")
    with entered(b):
        answer = dns.query.udp(dns.message.make_query("a", "A"), "127.0.0.11", timeout=_PATIENCE)
    assert [str(record) for rrset in answer.answer for record in rrset] == ["10.84.0.2"]
    with _serving(a, 80), _serving(a, 81), _serving(lan, 80):
        assert _reaches(b, "10.84.0.2", 80)
        assert _reaches(lan, _HOST, 8080)
        assert _reaches(a, "10.84.0.1", 8080)  # its own port, through the host and back
        assert _reaches(b, _LAN, 80)
        assert not _reaches(lan, "10.84.0.2", 81, _SILENCE)
    assert controller.check("web") == [] == controller.check("a")
    controller.reset()
    assert differences(before, snapshot()) == []


@pytest.mark.vm("ordinary", "bare")
def test_a_member_is_heard_from_its_own_address_only(controller: Controller) -> None:
    controller.create_network("web", subnets=["10.84.0.0/24"])
    a, b = controller.create_sandbox("a").netns, controller.create_sandbox("b").netns
    mac = controller.connect("web", "a").mac
    controller.connect("web", "b")
    ears = Ears()
    try:
        hear = ears.open(a, 9000, family=socket.AF_INET)
        forged = [datagram(source, "10.84.0.2", 9000, "forged", mac=mac) for source in ("10.84.0.1", "10.84.0.9", _LAN)]
        send(b, "eth0", *forged, datagram("10.84.0.3", "10.84.0.2", 9000, "honest", mac=mac))
        assert hear() == "honest"
    finally:
        ears.close()
    assert controller.check("web") == [] == controller.check("b")


@pytest.mark.needs_kernel("no_br_netfilter")
def test_without_br_netfilter_members_are_kept_apart_all_the_same(controller: Controller) -> None:
    controller.create_network("apart", subnets=["10.85.0.0/24"], options={"com.docker.network.bridge.enable_icc": "false"})
    a, b = controller.create_sandbox("a").netns, controller.create_sandbox("b").netns
    controller.connect("apart", "a", ports=parse_publish("8080:80"))
    controller.connect("apart", "b")
    with _serving(a, 80):
        assert _reaches(b, "10.85.0.1", 8080)
        assert not _reaches(b, "10.85.0.2", 80, _SILENCE)
    assert controller.check("apart") == [] == controller.check("a")


@pytest.mark.needs_kernel("no_ipv6")
def test_without_ipv6_it_is_refused_in_one_sentence(controller: Controller) -> None:
    before = snapshot()
    for wanted in ({"ipv6": True}, {"subnets": ["fd85::/64"]}):
        with pytest.raises(FeatureMissing, match=r"^network 'six': this kernel has no IPv6"):
            controller.create_network("six", **wanted)
    assert snapshot() == before
