"""The protocol from end to end, without a process: what is checked, what a plugin is given, what is printed."""

import json
import sys
from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any

import pytest
from msgspec import Struct

from cni_plugins.netconf import Attachment, NetConf
from cni_plugins.protocol import NEWEST, VERSIONS, CniError, Code, Command
from cni_plugins.result import IP, Interface, Result
from cni_plugins.skel import Call, Outcome, answer, reread
from cni_plugins.types import find_plugin_class, plugin_types
from netlib.errors import DeadlineExceeded, PoolExhausted, TeardownError

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/blue",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
}
PREV = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16"}]}
RESULT = Result(interfaces=(Interface("eth0", mtu=1500),), ips=(IP(ip_interface("10.1.0.5/16"), None, 0),))


class RecordingConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """A configuration with a key of its own."""

    is_gateway: bool = False


class Recording:
    """A plugin that notes its calls, and fails where it is told to."""

    name = "recording"
    config = RecordingConf

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[tuple[str, Call[RecordingConf]]] = []
        self._failure = failure

    def _note(self, verb: str, call: Call[RecordingConf]) -> None:
        self.calls.append((verb, call))
        if self._failure is not None:
            raise self._failure

    def add(self, call: Call[RecordingConf]) -> Result:
        self._note("add", call)
        return RESULT

    def check(self, call: Call[RecordingConf]) -> None:
        self._note("check", call)

    def delete(self, call: Call[RecordingConf]) -> None:
        self._note("delete", call)

    def garbage_collect(self, call: Call[RecordingConf]) -> None:
        self._note("garbage_collect", call)

    def status(self, call: Call[RecordingConf]) -> None:
        self._note("status", call)


def conf(version: str = NEWEST, valid: Any = ..., **keys: Any) -> bytes:
    """A configuration; *valid* are the attachments that a GC is to spare."""
    document = {"cniVersion": version, "name": "pods", "type": "recording", **keys}
    if valid is not ...:
        document["cni.dev/valid-attachments"] = valid
    return json.dumps(document).encode()


def ask(plugin: Recording, stdin: bytes, environ: Mapping[str, str] | None = None, **changed: str) -> Outcome:
    return answer(plugin, {**(ENVIRON if environ is None else environ), **changed}, stdin, lambda path: path == "/own")


def failure(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 1
    document: dict[str, Any] = json.loads(outcome.stdout)
    return document


def refused(stdin: bytes, environ: Mapping[str, str] | None = None, **changed: str) -> dict[str, Any]:
    """The error of a request that must not reach the plugin."""
    plugin = Recording()
    document = failure(ask(plugin, stdin, environ, **changed))
    assert not plugin.calls
    return document


# --- what is asked and answered ------------------------------------------------------------------------------------------


def test_add_prints_the_result_in_the_version_asked_for() -> None:
    for version in VERSIONS:
        plugin = Recording()
        outcome = ask(plugin, conf(version))
        written = json.loads(outcome.stdout)
        assert (outcome.code, outcome.stderr, written["cniVersion"]) == (0, b"", version)
        assert ("ip4" in written) == (version < "0.3.0")
        assert plugin.calls[0][1].version == version


def test_a_configuration_without_version_is_one_of_0_1_0() -> None:
    for stdin in (b'{"name": "pods"}', b'{"name": "pods", "cniVersion": ""}', b'{"name": "pods", "cniVersion": null}'):
        assert json.loads(ask(Recording(), stdin).stdout) == {"cniVersion": "0.1.0", "ip4": {"ip": "10.1.0.5/16"}, "dns": {}}


def test_the_plugin_is_given_a_checked_call() -> None:
    plugin = Recording()
    stdin = conf("1.0.0", isGateway=True, prevResult=PREV, more=[1])
    ask(plugin, stdin, CNI_ARGS="IP=10.1.0.5;IgnoreUnknown=1;K8S_POD_NAME=a")
    [(verb, call)] = plugin.calls
    assert (verb, call.command, call.network, call.version) == ("add", Command.ADD, "pods", "1.0.0")
    assert (call.container_id, call.netns, call.ifname) == ("c1", "/run/netns/blue", "eth0")
    assert call.path == ("/opt/cni/bin", "/usr/lib/cni")
    assert call.arguments("IP", "MAC") == {"IP": "10.1.0.5"}
    assert call.config == RecordingConf(name="pods", type="recording", cni_version="1.0.0", is_gateway=True)
    assert call.prev_result == Result(ips=(IP(ip_interface("10.1.0.5/16")),))
    assert call.raw["more"] == [1]
    assert (call.stdin, call.environ["CNI_COMMAND"], call.valid_attachments) == (stdin, "ADD", frozenset())


@pytest.mark.parametrize(
    ("command", "verb"), [("CHECK", "check"), ("DEL", "delete"), ("GC", "garbage_collect"), ("STATUS", "status")]
)
def test_the_other_verbs_print_nothing(command: str, verb: str) -> None:
    plugin = Recording()
    stdin = conf(prevResult=PREV, valid=[])
    assert ask(plugin, stdin, CNI_COMMAND=command) == Outcome(b"", 0)
    assert [name for name, _ in plugin.calls] == [verb]


def test_version_is_answered_without_anything_else() -> None:
    for stdin in (b"", b"junk", b'{"cniVersion": "0.2.0"}'):
        outcome = ask(Recording(), stdin, {"CNI_COMMAND": "VERSION", "CNI_IFNAME": "a/b"})
        assert outcome.code == 0
        assert json.loads(outcome.stdout) == {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)}


def test_without_a_command_it_says_what_it_is() -> None:
    for environ in ({}, {"CNI_COMMAND": ""}, {"CNI_CONTAINERID": "c1"}):
        outcome = ask(Recording(), b"", environ)
        assert (outcome.stdout, outcome.code) == (b"", 0)
        assert outcome.stderr.startswith(b"CNI recording plugin, netlib ")
        assert b"supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n" in outcome.stderr


# --- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME"),
        ("GC", "CNI_PATH"),
    ],
)
def test_variables_that_a_verb_needs(command: str, missing: str) -> None:
    empty = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "")
    for environ in ({}, empty):
        error = refused(conf(), environ, CNI_COMMAND=command)
        assert (error["code"], error["msg"]) == (4, f"required env variables [{missing}] missing")


def test_gc_and_status_need_no_container() -> None:
    plugin = Recording()
    for command in ("GC", "STATUS"):
        environ = {"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin", "CNI_IFNAME": "not/looked/at"}
        assert ask(plugin, conf(valid=[]), environ).code == 0
    assert [(call.container_id, call.netns, call.ifname) for _, call in plugin.calls] == [("", "", "")] * 2


@pytest.mark.parametrize("container_id", ["-x", "a b", "ä", "a\n", "a/b", "..", "_a"])
def test_container_ids_that_are_refused(container_id: str) -> None:
    error = refused(conf(), CNI_CONTAINERID=container_id)
    assert (error["code"], error["msg"], error["details"]) == (4, "invalid characters in containerID", container_id)


@pytest.mark.parametrize(
    ("ifname", "message"),
    [
        ("a" * 16, "interface name is too long"),
        ("ä" * 8, "interface name is too long"),
        (".", "interface name is . or .."),
        ("..", "interface name is . or .."),
        *(
            (name, "interface name contains / or : or whitespace characters")
            for name in ("a/b", "a:b", "a b", "a\t", "a\u2003b")
        ),
        *((name, "invalid CNI_IFNAME") for name in ("all", "-x", "eth%d", "ä")),
    ],
)
def test_ifnames_that_are_refused(ifname: str, message: str) -> None:
    error = refused(conf(), CNI_IFNAME=ifname)
    assert (error["code"], error["msg"]) == (4, message)


def test_a_name_that_the_reference_would_have_made_can_be_deleted() -> None:
    assert ask(Recording(), conf(), CNI_COMMAND="DEL", CNI_IFNAME="eth%d").code == 0


@pytest.mark.parametrize("name", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"])
def test_variables_that_are_no_text_are_refused_by_name(name: str) -> None:
    for value, message in (("a\udcff", f"{name} is no UTF-8"), ("a\0", f"{name} holds a zero byte")):
        error = refused(conf(), {**ENVIRON, name: value})
        assert (error["code"], error["msg"]) == (4, message)


def test_unknown_commands() -> None:
    for command in ("add", "FOO", "ADD ", "\udcff"):
        error = refused(conf("0.4.0"), CNI_COMMAND=command)
        assert (error["code"], error["cniVersion"]) == (4, "0.4.0")
        assert error["msg"].startswith("unknown CNI_COMMAND: ")


@pytest.mark.parametrize(
    ("stdin", "code", "message"),
    [
        (b"", 6, "network configuration: no JSON"),
        (b"null", 7, "missing network name"),
        (b"{}", 7, "missing network name"),
        (b'{"name": ""}', 7, "missing network name"),
        (b'{"name": "-a"}', 7, "invalid characters found in network name"),
        (b'{"name": "a\\n"}', 7, "invalid characters found in network name"),
        (b'{"name": 1}', 6, "network configuration: name: expected a text, got 1"),
        (b'{"name": "a", "cniVersion": 1}', 6, "network configuration: cniVersion: expected a text, got 1"),
        (conf("0.5.0"), 1, "incompatible CNI versions"),
        (conf("1.1"), 1, "incompatible CNI versions"),
        (conf(isGateway="yes"), 6, 'recording: isGateway: expected a boolean, got "yes"'),
        (conf(prevResult=3), 6, "prevResult: expected an object, got 3"),
        (conf(prevResult={"ips": 3}), 6, "prevResult: ips: expected a list, got 3"),
    ],
)
def test_configurations_that_are_refused(stdin: bytes, code: int, message: str) -> None:
    error = refused(stdin)
    assert error["code"] == code
    assert error["msg"].startswith(message)
    assert error["cniVersion"] in VERSIONS


def test_verbs_that_came_with_a_version() -> None:
    for command, since in (("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")):
        for version in VERSIONS[: VERSIONS.index(since)]:
            error = refused(conf(version), CNI_COMMAND=command)
            assert (error["code"], error["msg"]) == (1, f"config version does not allow {command}")
            assert error["cniVersion"] == version


def test_check_needs_a_prev_result_and_del_none() -> None:
    error = refused(conf(), CNI_COMMAND="CHECK")
    assert (error["code"], error["msg"]) == (7, "Required prevResult missing")
    plugin = Recording()
    assert ask(plugin, conf(), CNI_COMMAND="DEL", CNI_NETNS="") == Outcome(b"", 0)
    told = ask(plugin, conf(prevResult=3), CNI_COMMAND="DEL")
    assert (told.code, told.stderr) == (0, b"prevResult: expected an object, got 3; going on without\n")
    assert [call.prev_result for _, call in plugin.calls] == [None, None]


def test_del_goes_on_without_what_does_not_fit() -> None:
    plugin = Recording()
    told = ask(plugin, conf(isGateway="yes", ipam={"type": 5}, dns={"search": ["a", 5], "domain": "x"}), CNI_COMMAND="DEL")
    assert told.code == 0
    assert sorted(told.stderr.decode().splitlines()) == [
        "recording: dns.search[1]: expected a text, got 5; going on without",
        "recording: ipam.type: expected a text, got 5; going on without",
        'recording: isGateway: expected a boolean, got "yes"; going on without',
    ]
    call = plugin.calls[0][1]
    assert (call.config.is_gateway, call.config.dns.search, call.config.dns.domain) == (False, ("a",), "x")


def test_the_plugins_own_netns_is_refused_unless_meant() -> None:
    for command in ("ADD", "DEL"):
        error = refused(conf(), CNI_COMMAND=command, CNI_NETNS="/own")
        assert (error["code"], error["msg"]) == (8, "plugin's netns and netns from CNI_NETNS should not be the same")
        assert ask(Recording(), conf(), CNI_COMMAND=command, CNI_NETNS="/own", CNI_NETNS_OVERRIDE="tRue").code == 0
        assert ask(Recording(), conf(), CNI_COMMAND=command, CNI_NETNS="/own", CNI_NETNS_OVERRIDE="1").code == 0
    assert ask(Recording(), conf(prevResult=PREV), CNI_COMMAND="CHECK", CNI_NETNS="/own").code == 0


# --- GC ------------------------------------------------------------------------------------------------------------------


def test_gc_is_told_what_to_spare() -> None:
    spared = [{"containerID": "c1", "ifname": "eth0"}]
    for stdin in (conf(valid=spared), conf(valid=spared).replace(b"valid-attachments", b"attachments")):
        plugin = Recording()
        ask(plugin, stdin, CNI_COMMAND="GC")
        assert plugin.calls[0][1].valid_attachments == {Attachment("c1", "eth0")}
    plugin = Recording()
    ask(plugin, conf(valid=None), CNI_COMMAND="GC")
    assert plugin.calls[0][1].valid_attachments == frozenset(), "Go writes an empty list as null"


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({}, 7, "missing cni.dev/valid-attachments"),
        ({"valid": "all"}, 6, 'cni.dev/valid-attachments: expected a list, got "all"'),
        ({"valid": [3]}, 6, "cni.dev/valid-attachments[0]: expected an object, got 3"),
        (
            {"valid": [{"containerID": "a"}]},
            7,
            "cni.dev/valid-attachments[0].ifname: this key is required",
        ),
        ({"valid": 0}, 6, "cni.dev/valid-attachments: expected a list, got 0"),
        ({"valid": {}}, 6, "cni.dev/valid-attachments: expected a list, got {}"),
    ],
)
def test_gc_takes_nothing_away_for_a_list_it_cannot_read(keys: dict[str, Any], code: int, message: str) -> None:
    error = refused(conf(**keys), CNI_COMMAND="GC")
    assert (error["code"], error["msg"]) == (code, message)


# --- failures of a plugin ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "raised", "code"),
    [
        ("ADD", CniError(Code.UNKNOWN_CONTAINER, "gone"), 3),
        ("ADD", PoolExhausted("pool is full"), 103),
        ("STATUS", PoolExhausted("pool is full"), 50),
        ("DEL", DeadlineExceeded("c1 is locked by process 7"), 11),
        ("GC", TeardownError([PoolExhausted("a"), PoolExhausted("b")]), 107),
        ("CHECK", CniError(Code.DRIFT, "eth0 is down"), 106),
    ],
)
def test_a_plugins_error_has_its_code(command: str, raised: Exception, code: int) -> None:
    stdin = conf(prevResult=PREV, valid=[])
    error = failure(ask(Recording(raised), stdin, CNI_COMMAND=command))
    assert (error["cniVersion"], error["code"], error["msg"]) == (NEWEST, code, str(raised))


def test_a_defect_is_told_in_a_sentence() -> None:
    error = failure(ask(Recording(ZeroDivisionError("division by zero")), conf("0.3.1")))
    assert (error["cniVersion"], error["code"]) == ("0.3.1", 999)
    assert error["msg"] == "internal error: ZeroDivisionError: division by zero"
    assert "test_cni_skel.py, line " in error["details"]


def test_a_result_that_the_version_cannot_say_is_an_error() -> None:
    class Nothing(Recording):
        def add(self, call: Call[RecordingConf]) -> Result:
            return Result()

    error = failure(ask(Nothing(), conf("0.2.0")))
    assert (error["code"], error["msg"]) == (1, "cannot convert: no valid IP addresses")


# --- types ---------------------------------------------------------------------------------------------------------------


def test_every_type_resolves_to_a_plugin_of_that_name() -> None:
    assert "static" in plugin_types()
    for kind in plugin_types():
        plugin = find_plugin_class(kind)
        assert plugin is not None
        assert plugin.name == kind
        assert issubclass(plugin.config, NetConf)
        for verb in ("add", "check", "delete", "garbage_collect", "status"):
            assert callable(getattr(plugin, verb)), f"{kind} has no {verb}"
    assert find_plugin_class("calico") is None


def test_a_call_can_be_read_anew_for_an_ipam_type() -> None:
    class OtherConf(NetConf, frozen=True, kw_only=True, rename="camel"):
        more: tuple[int, ...] = ()

    plugin = Recording()
    ask(plugin, conf(more=[1]))
    call = reread(plugin.calls[0][1], OtherConf, "other")
    assert (call.config.more, call.container_id) == ((1,), "c1")
    with pytest.raises(CniError, match=r"other: more\[0\]: expected a whole number"):
        reread(Call(**{**_fields(plugin.calls[0][1]), "raw": {"name": "n", "more": ["x"]}}), OtherConf, "other")


def _fields(call: Struct) -> dict[str, Any]:
    return {name: getattr(call, name) for name in call.__struct_fields__}


def test_reading_a_request_imports_nothing_heavy() -> None:
    """A launcher's in-process way pays for each import; heavy ones belong into the plugins, late."""
    import subprocess

    code = "import sys, cni_plugins.types, cni_plugins.static; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "subprocess",
        "socket",
        "sqlite3",
        "pyroute2",
        "asyncio",
        "logging",
        "pathlib",
        "netlib.core.controller",
        "netaddr",
    }
    assert not heavy & set(loaded)
