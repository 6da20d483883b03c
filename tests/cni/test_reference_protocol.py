"""Our protocol beside that of the reference plugins' binaries: the same environment and stdin to both, and what is answered.

The table says where they must agree, and where ours differs on purpose and why. No network is touched: errors of the
protocol come before any, and ``static`` needs none.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.node import Node
from cni_plugins.protocol import VERSIONS
from cni_plugins.skel import Outcome, answer
from cni_plugins.static import StaticPlugin
from netlib.core.controller import Controller

pytestmark = pytest.mark.peers

NODE = Node(Controller)  # static asks nothing of it
REFERENCE = Path("/usr/lib/cni")
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/nonexistent",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": str(REFERENCE),
}
NEW_VERSION = "1.1.0"  # the reference here is of 2022 and ends at 1.0.0
FULL_IPAM = {
    "type": "static",
    "addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64", "gateway": "fd00::1"}],
    "routes": [
        {"dst": "0.0.0.0/0", "gw": "10.0.0.9"},
        {"dst": "1.2.3.4/16"},
        {"dst": "::/0"},
        {"dst": "10.9.0.0/16", "gw": ""},
    ],
    "dns": {"nameservers": ["8.8.8.8"], "domain": "d", "search": ["a"], "options": ["b"]},
}
ONE = {"addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]}
TWO = {"addresses": [{"address": "10.0.0.2/24"}, {"address": "10.0.0.3/24"}]}
PREV = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]}


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The peer itself; its absence is a failure, for what is not compared does not hold."""
    if not (REFERENCE / "static").is_file():
        pytest.fail(f"{REFERENCE}/static is missing; install it with `apt-get install containernetworking-plugins`")


def conf(version: str = "1.0.0", ipam: Any = None, **keys: Any) -> str:
    document = {"cniVersion": version, "name": "pods", "type": "static", "ipam": ONE if ipam is None else ipam, **keys}
    return json.dumps(document, ensure_ascii=False)


def theirs(environ: Mapping[str, str], stdin: str) -> Outcome:
    process = subprocess.run(
        [REFERENCE / "static"], env=dict(environ), input=stdin.encode(errors="surrogateescape"), capture_output=True, timeout=10
    )
    return Outcome(process.stdout, process.returncode, process.stderr)


def ours(environ: Mapping[str, str], stdin: str) -> Outcome:
    return answer(StaticPlugin(NODE), environ, stdin.encode(errors="surrogateescape"), lambda _: False)


def both(environ: Mapping[str, str], stdin: str) -> tuple[Any, Any]:
    """What each answered, as JSON (None for nothing), after a look at the exit codes."""
    reference, own = theirs(environ, stdin), ours(environ, stdin)
    assert reference.code == own.code, (reference, own)
    return _document(reference), _document(own)


def _document(outcome: Outcome) -> Any:
    return json.loads(outcome.stdout) if outcome.stdout else None


# --- equal: an ADD and its result ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "args"),
    [
        *((conf(version, FULL_IPAM), "") for version in VERSIONS if version != NEW_VERSION),
        (json.dumps({"name": "pods", "ipam": FULL_IPAM}), ""),
        (json.dumps({"name": "pods", "cniVersion": "", "ipam": FULL_IPAM}), ""),
        (json.dumps({"NAME": "pods", "CNIversion": "1.0.0", "IPAM": {"Addresses": [{"ADDRESS": "10.0.0.2/24"}]}}), ""),
        (conf("0.3.0", TWO), ""),
        (conf("0.4.0", {}), ""),
        (conf("1.0.0", {}), ""),
        (conf(ipam={"addresses": [{"address": "10.0.0.2/024", "gateway": ""}], "unknown": 1}, unknown={"a": [None]}), ""),
        (conf(ipam={"addresses": [{"address": "::ffff:10.0.0.2/120", "gateway": "::ffff:10.0.0.1"}]}), ""),
        (conf(ipam={"addresses": [{"address": "10.0.0.0/24", "gateway": None}], "routes": None, "dns": None}), ""),
        (conf(args=None, runtimeConfig=None), ""),
        (conf(args={"cni": None}, runtimeConfig={"ips": []}), ""),
        (conf(args={"cni": {"ips": ["10.1.0.1/8"]}}), "IP=10.0.0.7/24"),
        (conf(args={"cni": {"ips": ["10.1.0.1/8"]}}, runtimeConfig={"ips": ["10.2.0.1/8", "fd00::1/64"]}), "IP=10.0.0.7/24"),
        (conf(), "IP=10.0.0.5/24"),
        (conf(), "IP=10.0.0.5/24;GATEWAY=10.0.0.1"),
        (conf(ipam=TWO), "GATEWAY=10.0.0.1"),
        (conf(), "IP=10.0.0.5/24, fd00::3/64;GATEWAY=10.0.0.1,fd00::9"),
        (conf(), "IP=1.1.1.1/8;IP=2.2.2.2/8"),
        (conf(), "IP="),
        (conf(), "K8S_POD_NAME=a;IgnoreUnknown=1"),
        (conf(), "IgnoreUnknown=TRUE;K8S_POD_NAME=a"),
        ('{"name": "x", ' + conf()[1:], ""),
        (conf(label="\udcff"), ""),
    ],
)
def test_results_are_equal(stdin: str, args: str) -> None:
    reference, own = both({**ENVIRON, "CNI_ARGS": args}, stdin)
    assert own == reference
    assert "code" not in own


@pytest.mark.parametrize(
    ("command", "stdin"),
    [
        ("CHECK", conf(prevResult=PREV)),
        ("CHECK", conf("0.4.0", prevResult={"ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1"}]})),
        ("CHECK", conf(prevResult={**PREV, "ips": [*PREV["ips"], {"address": "10.0.0.9/24"}]})),
        ("DEL", conf()),
        ("DEL", conf(prevResult=PREV)),
        ("DEL", conf(prevResult=3)),
        ("DEL", '{"name": "pods"}'),
    ],
)
def test_check_and_del_are_equal(command: str, stdin: str) -> None:
    assert both({**ENVIRON, "CNI_COMMAND": command}, stdin) == (None, None)
    if command == "DEL":
        assert both({**ENVIRON, "CNI_COMMAND": command, "CNI_NETNS": "", "CNI_ARGS": "not looked at"}, stdin) == (None, None)


def test_version_and_the_about_text() -> None:
    for stdin in ("", "junk", '{"cniVersion": "0.2.0"}'):
        reference, own = both({"CNI_COMMAND": "VERSION"}, stdin)
        assert own == {"cniVersion": NEW_VERSION, "supportedVersions": [*reference["supportedVersions"], NEW_VERSION]}
    reference, own = theirs({}, ""), ours({}, "")
    assert (own.stdout, own.code) == (reference.stdout, reference.code) == (b"", 0)
    assert own.stderr.splitlines()[1].startswith(reference.stderr.splitlines()[1])


# --- equal: the protocol's own errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "stdin"),
    [
        *(({"CNI_CONTAINERID": value}, conf()) for value in ("", "-x", "a b", "ä", "a\n", "a/b")),
        *(({"CNI_IFNAME": value}, conf()) for value in ("", "a" * 16, "ä" * 8, ".", "..", "a/b", "a:b", "a b", "a\u2003b")),
        ({"CNI_NETNS": ""}, conf()),
        ({"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "", "CNI_IFNAME": ""}, conf()),
        ({"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}, ""),
        ({}, "null"),
        ({}, "{}"),
        ({}, '{"name": ""}'),
        ({}, '{"name": "-a"}'),
        ({}, '{"name": "a b"}'),
        ({}, '{"name": "a\\n"}'),
        ({}, '{"name": "n\udcff"}'),
        ({"CNI_COMMAND": "FOO"}, conf()),
    ],
)
def test_errors_are_equal(environ: dict[str, str], stdin: str) -> None:
    reference, own = both({**ENVIRON, **environ}, stdin)
    version = own.pop("cniVersion")  # asked for by the specification, never given by the reference
    assert version in VERSIONS
    if environ.get("CNI_COMMAND") == "FOO":
        own.pop("details")
    assert own == reference


@pytest.mark.parametrize(
    ("command", "stdin", "code"),
    [
        ("ADD", "", 6),
        ("ADD", "{", 6),
        ("ADD", "[]", 6),
        ("ADD", "1", 6),
        ("ADD", '{"name": 1}', 6),
        ("ADD", conf() + "x", 6),
        ("ADD", "\ufeff" + conf(), 6),
        ("ADD", '{"name": NaN}', 6),
        ("ADD", "[" * 20000, 6),
        ("ADD", '{"a":' * 20000, 6),
        ("ADD", json.dumps({"name": "pods", "cniVersion": 1}), 6),
        ("ADD", conf("0.5.0"), 1),
        ("ADD", conf("1.0"), 1),
        ("ADD", conf("x"), 1),
        ("CHECK", conf("0.3.1"), 1),
        ("CHECK", conf("9.0.0"), 1),
    ],
)
def test_codes_are_equal(command: str, stdin: str, code: int) -> None:
    reference, own = both({**ENVIRON, "CNI_COMMAND": command}, stdin)
    assert (reference["code"], own["code"]) == (code, code)


# --- different on purpose ------------------------------------------------------------------------------------------------

_UNNAMED = 999  # what the reference calls every error of a plugin


@pytest.mark.parametrize(
    ("command", "stdin", "args", "code"),
    [
        ("ADD", json.dumps({"name": "pods"}), "", 7),
        ("ADD", conf("0.2.0", TWO), "", 7),
        ("ADD", conf("0.2.0", {}), "", 1),
        ("ADD", conf(ipam=3), "", 6),
        ("ADD", conf(ipam={"addresses": {}}), "", 6),
        ("ADD", conf(ipam={"addresses": [{"address": 3}]}), "", 6),
        ("ADD", conf(ipam={"dns": {"nameservers": "x"}}), "", 6),
        ("ADD", conf(args=3), "", 6),
        ("ADD", conf(runtimeConfig=3), "", 6),
        *(
            ("ADD", conf(ipam={"addresses": [{"address": text}]}), "", 7)
            for text in ("x", "10.0.0.2", "10.0.0.2/33", "", "1.1.1.01/8")
        ),
        *(
            ("ADD", conf(ipam={"addresses": [{"address": "10.0.0.2/24", "gateway": text}]}), "", 7)
            for text in ("x", "10.0.0.1/24")
        ),
        ("ADD", conf(ipam={"routes": [{"dst": "10.0.0.0"}]}), "", 7),
        ("ADD", conf(runtimeConfig={"ips": ["10.2.0.1"]}), "", 7),
        *(
            ("ADD", conf(), args, 4)
            for args in ("IP", ";", "IP=a=b", "MAC=1", "ip=10.0.0.5/24", "IgnoreUnknown=yes", "IP=10.0.0.5", "GATEWAY=x")
        ),
        ("CHECK", conf(), "", 7),
        ("CHECK", conf(prevResult=3), "", 6),
        ("CHECK", conf(prevResult={"ips": 3}), "", 6),
        ("CHECK", conf(prevResult={**PREV, "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.3"}]}), "", 106),
    ],
)
def test_where_the_reference_has_no_code_ours_has_the_specifications(command: str, stdin: str, args: str, code: int) -> None:
    reference, own = both({**ENVIRON, "CNI_COMMAND": command, "CNI_ARGS": args}, stdin)
    assert (reference["code"], own["code"]) == (_UNNAMED, code)
    if args or (command == "CHECK" and code == 7):
        assert own["msg"].partition(": boolean")[0] == reference["msg"].partition(": boolean")[0]


def test_cni_path_is_optional_as_the_specification_says() -> None:
    environ = {**ENVIRON, "CNI_PATH": ""}
    for command in ("ADD", "DEL"):
        reference, own = theirs({**environ, "CNI_COMMAND": command}, conf()), ours({**environ, "CNI_COMMAND": command}, conf())
        assert json.loads(reference.stdout)["msg"] == "required env variables [CNI_PATH] missing"
        assert own.code == 0


@pytest.mark.parametrize(
    ("command", "stdin"),
    [
        ("CHECK", conf(prevResult={"ips": []})),  # theirs does not look for an address that is not there
        ("CHECK", conf(prevResult={**PREV, "ips": [{"address": "10.0.0.2/8", "gateway": "10.0.0.1"}]})),  # nor at its length
        ("ADD", conf(prevResult=3)),  # the reference's static does not look at keys that it does not need
        ("ADD", conf(type=3)),
        ("ADD", conf(dns=3)),
        ("ADD", conf(x="\\ud800").replace("\\\\", "\\")),  # half a surrogate pair is no text
        ("ADD", conf(x=0)[:-2] + "1" * 5000 + "}"),  # nor is this a number
        ("ADD", conf(ipam={"routes": [{}]})),  # theirs prints the destination "<nil>"
    ],
)
def test_what_only_ours_refuses(command: str, stdin: str) -> None:
    environ = {**ENVIRON, "CNI_COMMAND": command}
    assert (theirs(environ, stdin).code, ours(environ, stdin).code) == (0, 1)


def test_ifnames_that_only_ours_refuses() -> None:
    for ifname in ("-x", "all", "ä", "eth%d", "a\x1cb"):
        environ = {**ENVIRON, "CNI_IFNAME": ifname}
        assert (theirs(environ, conf()).code, ours(environ, conf()).code) == (0, 1)


def test_a_prev_result_of_another_version_is_only_ours_to_read() -> None:
    stdin = conf(prevResult={**PREV, "cniVersion": "0.4.0"})
    environ = {**ENVIRON, "CNI_COMMAND": "CHECK"}
    assert (theirs(environ, stdin).code, ours(environ, stdin).code) == (1, 0)
