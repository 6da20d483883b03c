"""``explain`` prints commands that a person can type, in that order: typed, they make what netlib makes."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.model import NetnsRef
from netlib.names import bridge_ifname
from netlib.testing.snapshot import Snapshot, differences, snapshot

# Besides tags: a veth's own address is random, and ip(8) notes that a person made a route.
_OURS = re.compile(r" alias netlib:\S+| group \d+|(?<=^veth up mtu 1500) mac \S+(?= master)| proto [34]")


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


def _seen(*names: str) -> Snapshot:
    """The host and the netns of these *names*, without the tags by which netlib finds its own.

    Also without addresses and routes in fe80::/10, which the kernel makes some time after a link has a carrier.
    """
    places = {"": snapshot(), **{name: snapshot(NetnsRef(f"/run/netns/{name}")) for name in names}}
    return {
        f"{place} {section}": {
            name: json.dumps(_untagged(json.loads(text)), sort_keys=True) if section == "firewall" else _OURS.sub("", text)
            for name, text in found.items()
            if "fe80:" not in name
        }
        for place, sections in places.items()
        for section, found in sections.items()
    }


def _untagged(body: Any) -> Any:
    """A part of nft's listing without comments of ours; nft nests what has a comment in ``elem`` and ``val``."""
    if isinstance(body, dict):
        if body.keys() == {"elem"} and isinstance(body["elem"], dict):
            return _untagged(body["elem"]["val"])
        plain = {key: _untagged(value) for key, value in body.items() if not str(value).startswith("netlib:")}
        return plain | {key: sorted(value, key=json.dumps) for key, value in plain.items() if key == "elem"}
    if isinstance(body, list):
        return [_untagged(value) for value in body]
    return body


def _typed(lines: list[str]) -> None:
    for line in lines:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"$ {line}\n{done.stderr}"


def _removed(names: list[str], bridges: list[str]) -> None:
    for name in names:
        _typed([f"ip netns del {name}", f"rm -r /etc/netns/{name}"])
    _typed([f"ip link del {bridge}" for bridge in bridges])
    _typed(["nft delete table inet netlib", "nft delete table bridge netlib_members", "sysctl -w net/ipv4/ip_forward=0"])
    _typed(["[ ! -e /proc/sys/net/ipv6 ] || sysctl -w net/ipv6/conf/all/forwarding=0"])


def test_the_commands_make_what_netlib_makes(controller: Controller) -> None:
    web = controller.create_network("web", subnets=["10.1.0.0/24"])
    dual = controller.create_network("dual", subnets=["10.2.0.0/24", "fd00:2::/64"], ipv6=True)
    for name in ("front", "back"):
        controller.create_sandbox(name)
        controller.connect("web", name, ports=["8080:80"] if name == "front" else [])
    controller.connect("dual", "front", ip="10.2.0.9")
    lines = [line for subject in ("web", "dual", "front", "back") for line in controller.explain(subject)]
    files = [Path(f"/etc/netns/{name}/{file}") for name in ("front", "back") for file in ("hosts", "resolv.conf")]
    made, texts = _seen("front", "back"), [path.read_text() for path in files]
    controller.reset()

    _typed(lines)
    try:
        assert differences(made, _seen("front", "back")) == []
        assert [path.read_text() for path in files] == texts
    finally:
        _removed(["front", "back"], [bridge_ifname(web), bridge_ifname(dual)])


def test_a_rule_among_those_of_others_is_explained_where_it_is_needed(controller: Controller) -> None:
    bridge = bridge_ifname(controller.create_network("web"))
    assert [line for line in controller.explain("web") if line.startswith("#")] == [
        f"# no other program drops what {bridge} forwards by default, so no rule of ours is needed among theirs"
    ]
    _typed(["nft 'add table ip filter'"])
    try:
        _typed(["nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'"])
        lines = [line for line in controller.explain("web") if "forward" in line and "ip filter" in line]
        assert [line.split(" counter")[0] for line in lines] == [
            f'nft \'add rule ip filter FORWARD iifname "{bridge}"',
            f'nft \'add rule ip filter FORWARD oifname "{bridge}"',
        ]
        _typed(lines)
    finally:
        _typed(["nft 'delete table ip filter'"])
