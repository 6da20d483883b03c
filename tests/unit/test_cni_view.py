"""CNI networks and attachments as people see them: chains put together, Docker's JSON, tables and filters."""

import json
import subprocess
import sys
from typing import Any

import pytest

from netlib.cli import cni as command
from netlib.cli import system
from netlib.cli.main import main
from netlib.config import Config
from netlib.model import CniAttachment, CniNetwork, NetnsRef
from netlib.store.records import JournalEntry
from netlib.verbs.cni import Attached, as_network, attached, details, row, unused_row
from netlib.verbs.inspect import journal_row, network_row

PODS = CniNetwork(id="a" * 64, name="pods", created=1700000000.0)
IDLE = CniNetwork(id="b" * 64, name="idle", created=1700000000.0)
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/var/run/netns/cni-1"},
    ],
    "ips": [{"address": "10.22.0.2/16", "gateway": "10.22.0.1", "interface": 1}, {"address": "fd00:22::2/64", "interface": 1}],
}


def part(plugin: str, created: float = 0.0, **wanted: Any) -> CniAttachment:
    fields = {"container": "c" * 64, "ifname": "eth0", "result": RESULT, "network": PODS.id, **wanted}
    return CniAttachment(id=plugin * 4, plugin=plugin, netns=NetnsRef("/var/run/netns/cni-1"), created=created, **fields)


def chain(**wanted: Any) -> Attached:
    (found,) = attached([PODS], [part("portmap", 2.0, **wanted), part("bridge", 1.0, **wanted)])
    return found


def test_a_chain_is_one_attachment_in_the_order_it_was_made() -> None:
    items = attached(
        [PODS, IDLE], [part("portmap", 2.0), part("bridge", 1.0), part("bridge", ifname="eth1"), part("x", network="?")]
    )
    assert [(item.ifname, [found.plugin for found in item.parts]) for item in items] == [
        ("eth0", ["bridge", "portmap"]),
        ("eth1", ["bridge"]),
    ]


def test_the_last_plugin_that_answered_says_what_the_result_is() -> None:
    (item,) = attached([PODS], [part("bridge", 1.0), part("tuning", 2.0, result={})])
    assert [str(address) for address in item.addresses] == ["10.22.0.2/16", "fd00:22::2/64"]
    assert item.mac == "02:00:00:00:00:02"
    assert attached([PODS], [part("bridge", result={})])[0].addresses == []


def test_a_row_is_all_text() -> None:
    shown = row(chain(), stale=True, now=302.0)
    assert shown.keys() == unused_row(IDLE, 0).keys()
    assert shown | {"Container": "", "CreatedAt": "", "NetworkID": ""} == {
        "Addresses": "10.22.0.2/16,fd00:22::2/64",
        "Container": "",
        "CreatedAt": "",
        "Interface": "eth0",
        "MacAddress": "02:00:00:00:00:02",
        "Netns": "/var/run/netns/cni-1",
        "Network": "pods",
        "NetworkID": "",
        "Plugins": "bridge,portmap",
        "RunningFor": "5 minutes ago",
        "Status": "stale",
    }


def test_a_network_is_shown_as_docker_shows_one() -> None:
    shown = network_row(as_network(PODS, [chain()]))
    assert shown.items() >= {"Driver": "cni", "Name": "pods", "ID": "a" * 64, "IPv4": "true", "IPv6": "true"}.items()
    assert network_row(as_network(IDLE, []))["IPv4"] == "false"


def test_network_inspect_names_each_interface() -> None:
    items = attached([PODS], [part("bridge"), part("bridge", ifname="eth1"), part("bridge", container="d")])
    shown = details(PODS, items)
    assert [*shown["Containers"]] == ["c" * 64, f"{'c' * 64}/eth1", "d"]
    assert shown["Containers"]["d"]["IPv6Address"] == "fd00:22::2/64"
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.22.0.0/16", "Gateway": "10.22.0.1"}, {"Subnet": "fd00:22::/64"}]
    assert details(IDLE, [])["Containers"] == {}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What ``cni ls`` prints with these words, where one container is attached and one network is not used."""
    rows = [row(chain(), stale=False, now=61.0), unused_row(IDLE, IDLE.created)]

    def call(_: Config, verb: str, args: dict[str, Any], **__: Any) -> Any:
        assert (verb, args) == ("cni.ls", {})
        return rows

    monkeypatch.setattr(command, "call", call)

    def run(*words: str) -> str:
        assert main(["cni", "ls", *words]) == 0
        return capsys.readouterr().out

    return run


def test_cni_ls_is_a_table(listed: Any) -> None:
    heading, one, two = listed().splitlines()
    assert heading.split("  ")[0] == "CONTAINER ID"
    assert one.split() == [
        *("c" * 12, "pods", "eth0", "bridge,portmap", "10.22.0.2/16,fd00:22::2/64", "cni-1"),
        *("1", "minute", "ago", "attached"),
    ]
    assert two.split() == ["idle", "Less", "than", "a", "second", "ago", "unused"]
    assert "c" * 64 in listed("--no-trunc")
    assert "/var/run/netns/cni-1" in listed("--no-trunc")
    assert [json.loads(line)["Network"] for line in listed("--format", "json").splitlines()] == ["pods", "idle"]
    assert listed("--format", "{{.Network}} {{.MacAddress}}") == "pods 02:00:00:00:00:02\nidle \n"
    assert listed("-q") == "c" * 12 + "\n"
    assert listed("-q", "--no-trunc") == "c" * 64 + "\n"


@pytest.mark.parametrize(
    ("filters", "networks"),
    [
        (["network=pods"], ["pods"]),
        (["network=bbbb"], ["idle"]),
        (["network=pods", "network=idle"], ["pods", "idle"]),
        (["container=ccc"], ["pods"]),
        (["container="], ["pods"]),
        (["container=ddd"], []),
        (["interface=eth1"], []),
        (["plugin=portmap", "status=attached"], ["pods"]),
        (["plugin=port"], []),
        (["status=unused"], ["idle"]),
        (["network="], []),
    ],
)
def test_filters(listed: Any, filters: list[str], networks: list[str]) -> None:
    words = [word for text in filters for word in ("-f", text)]
    assert listed("--format", "{{.Network}}", *words).split() == networks


def test_an_unknown_filter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cni", "ls", "-f", "colour=red"]) == 1
    assert "filter 'colour=red' is not understood; write KEY=VALUE, the key one of container, " in capsys.readouterr().err
    assert main(["cni", "ls", "-f", "status=lost"]) == 1
    assert "filter 'status=lost' is not understood; a status is one of attached, stale, unused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer", "asked", "printed"),
    [
        ("prune -f", {"AttachmentsDeleted": [], "NetworksDeleted": []}, {"stale": False}, ""),
        (
            "prune -f --stale",
            {"AttachmentsDeleted": ["c1 eth0 pods"], "NetworksDeleted": ["pods"]},
            {"stale": True},
            "Deleted Attachments:\nc1 eth0 pods\nDeleted Networks:\npods\n",
        ),
        ("inspect -f {{.Container}} c1", [{"Container": "c1"}, {"Container": "c1"}], {"name": "c1"}, "c1\nc1\n"),
    ],
)
def test_prune_and_inspect_say_what_they_found(
    words: str, answer: Any, asked: Any, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def call(_: Config, verb: str, args: dict[str, Any], **__: Any) -> Any:
        calls.append((verb, args))
        return answer

    monkeypatch.setattr(command, "call", call)
    assert main(["cni", *words.split()]) == 0
    assert capsys.readouterr().out == printed
    assert calls == [(f"cni.{words.split()[0]}", asked)]


def test_the_log_has_short_ids(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entry = journal_row(
        JournalEntry(1700000000.0, "cni add", f"pods/{'c' * 64}/eth0/bridge", "ok", 0.0042, ["+ link/host/veth0"])
    )
    monkeypatch.setattr(system, "call", lambda *_, **__: [entry])
    assert main(["log"]) == 0
    assert capsys.readouterr().out == "2023-11-14 22:13:20Z  cni add  pods/cccccccccccc/eth0/bridge  ok  4.2 ms  1 object\n"
    assert main(["log", "--format", "{{.Subject}}"]) == 0
    assert capsys.readouterr().out == f"pods/{'c' * 64}/eth0/bridge\n"


def test_common_plugin_types_are_imported_ahead() -> None:
    program = "import sys; from cni_plugins.run import preload; preload(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert {"cni_plugins.run", "cni_plugins.bridge", "cni_plugins.host_local", "cni_plugins.portmap"} <= set(modules)
    assert "pyroute2" not in modules
