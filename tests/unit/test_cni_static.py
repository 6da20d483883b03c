"""The plugin type ``static``: where its addresses come from, and what its CHECK sees."""

import json
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from cni_plugins.node import Node
from cni_plugins.skel import answer
from cni_plugins.static import StaticPlugin
from ipam.static import Assignment, assignments, drift
from netlib.core.controller import Controller

NODE = Node(Controller)  # static asks nothing of it
CONFIGURED = {"address": "10.0.0.2/24", "gateway": "10.0.0.1"}


def ask(
    command: str = "ADD", cni_args: str = "", version: str = "1.0.0", ipam: Any = None, cni_path: str = "", **keys: Any
) -> dict[str, Any]:
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": cni_args,
        "CNI_PATH": cni_path,
    }
    ipam = {"addresses": [CONFIGURED]} if ipam is None else ipam
    stdin = json.dumps({"cniVersion": version, "name": "n", "ipam": ipam, **keys}).encode()
    outcome = answer(StaticPlugin(NODE), environ, stdin, lambda _: False)
    document: dict[str, Any] = json.loads(outcome.stdout or b"{}")
    assert outcome.code == ("code" in document)
    return document


def addresses(**keys: Any) -> list[tuple[str, str | None]]:
    return [(ip["address"], ip.get("gateway")) for ip in ask(**keys).get("ips", [])]


def test_addresses_routes_and_dns_are_what_the_configuration_says() -> None:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.9", "mtu": 1400}]
    dns = {"nameservers": ["10.0.0.1"], "search": ["example.org"]}
    assert ask(version="1.1.0", ipam={"type": "static", "addresses": [CONFIGURED], "routes": routes, "dns": dns}) == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
        "routes": routes,
        "dns": dns,
    }


def test_the_order_of_the_places_that_may_name_addresses() -> None:
    own = ("10.0.0.2/24", "10.0.0.1")
    assert addresses(cni_args="IP=10.1.0.5/24, fd00::5/64;GATEWAY=10.1.0.1,fd00::1") == [
        own,
        ("10.1.0.5/24", "10.1.0.1"),
        ("fd00::5/64", "fd00::1"),
    ]
    assert addresses(cni_args="GATEWAY=10.0.0.9") == [own], "of the addresses of CNI_ARGS only"
    assert addresses(cni_args="IP=10.1.0.5/24", runtimeConfig={"ips": []}) == [own, ("10.1.0.5/24", None)]
    args = {"cni": {"ips": ["10.2.0.1/8"]}}
    assert addresses(cni_args="IP=10.1.0.5/24", args=args) == [("10.2.0.1/8", None)]
    runtime_config = {"ips": ["10.3.0.1/8", "fd00::1/64"]}
    expected = [("10.3.0.1/8", None), ("fd00::1/64", None)]
    assert addresses(cni_args="IP=10.1.0.5/24", args=args, runtimeConfig=runtime_config) == expected


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"cni_args": "IP=10.1.0.5"}, 4, "the 'ip' field is expected to be in CIDR notation, got: '10.1.0.5'"),
        ({"cni_args": "GATEWAY=x"}, 4, "invalid gateway address: x"),
        ({"cni_args": "MAC=x"}, 4, 'ARGS: unknown args ["MAC=x"]'),
        ({"ipam": 0}, 6, "static: ipam: expected an object, got 0"),
        (
            {"runtimeConfig": {"ips": ["10.0.0.1"]}},
            7,
            "static: runtimeConfig.ips[0]: expected an address with its prefix length",
        ),
        (
            {"ipam": {"addresses": [CONFIGURED] * 2}, "version": "0.2.0"},
            7,
            "CNI version 0.2.0 does not support more than 1 address",
        ),
        ({"ipam": {}, "version": "0.2.0"}, 1, "cannot convert: no valid IP addresses"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], code: int, message: str) -> None:
    error = ask(**keys)
    assert error["code"] == code
    assert error["msg"].startswith(message)


def test_a_configuration_without_ipam_is_refused_but_by_del() -> None:
    for command, code in (("ADD", 7), ("DEL", None)):
        environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0"}
        outcome = answer(StaticPlugin(NODE), environ, b'{"name": "n", "cniVersion": "1.0.0"}', lambda _: False)
        assert json.loads(outcome.stdout or b"{}").get("code") == code


@pytest.mark.parametrize(
    ("ips", "details"),
    [
        ([CONFIGURED, {"address": "10.0.0.3/24"}], None),
        ([], "10.0.0.2/24 is not among the addresses of the result"),
        ([{**CONFIGURED, "address": "10.0.0.2/8"}], "10.0.0.2/24 is not among the addresses of the result"),
        ([{**CONFIGURED, "gateway": "10.0.0.3"}], "10.0.0.2/24 has the gateway 10.0.0.3, not 10.0.0.1"),
        ([{"address": "10.0.0.2/24"}], "10.0.0.2/24 has the gateway None, not 10.0.0.1"),
    ],
)
def test_check_compares(ips: list[dict[str, str]], details: str | None) -> None:
    error = ask("CHECK", prevResult={"ips": ips})
    assert error.get("details") == details
    assert error.get("code") == (None if details is None else 106)


def test_gc_and_status_have_nothing_to_do() -> None:
    spared: dict[str, Any] = {"cni.dev/valid-attachments": []}
    assert ask("GC", version="1.1.0", **spared)["code"] == 4, "CNI_PATH is missing"
    assert ask("GC", version="1.1.0", cni_path="/opt/cni/bin", **spared) == {}
    assert ask("STATUS", version="1.1.0") == {}
    assert ask("DEL") == {}


def test_the_last_fitting_gateway_counts() -> None:
    address = ip_interface("10.1.0.5/24")
    gateways = [ip_address("10.1.0.1"), ip_address("10.1.0.2"), ip_address("10.2.0.1")]
    found = assignments(configured=[], requested=[address], gateways=gateways, overrides=((), ()))
    assert found == (Assignment(address, ip_address("10.1.0.2")),)
    assert drift(Assignment(address, None), found) is None
