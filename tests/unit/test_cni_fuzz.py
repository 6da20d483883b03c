"""Whatever comes in by stdin and environment: a valid answer or a well-formed error, never a traceback, never a defect."""

import copy
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cni_plugins.node import Node
from cni_plugins.protocol import VERSIONS, Code
from cni_plugins.result import Result
from cni_plugins.skel import Call, Outcome, answer
from cni_plugins.static import StaticConf, StaticPlugin
from netlib.core.controller import Controller

NODE = Node(Controller)  # static asks nothing of it
VALID: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "pods",
    "type": "static",
    "capabilities": {"ips": True},
    "ipMasq": True,
    "ipam": {
        "type": "static",
        "addresses": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400, "table": 5}],
        "dns": {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]},
    },
    "dns": {"nameservers": ["10.0.0.1"]},
    "runtimeConfig": {"ips": ["10.0.0.3/24"]},
    "args": {"cni": {"ips": ["10.0.0.4/24"]}},
    "prevResult": {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": "00:11:22:33:44:55", "mtu": 1500, "sandbox": "/x"}],
        "ips": [{"address": "10.0.0.3/24", "gateway": "10.0.0.1", "interface": 0}],
        "routes": [{"dst": "::/0"}],
        "dns": {},
    },
    "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
}
VARIABLES = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_NETNS_OVERRIDE")

_words = st.sampled_from(
    ["", "x", "10.0.0.2/24", "fd00::1", "::ffff:1.2.3.4/100", "fe80::1%eth0/64", "0.0.0.0/0", "10.0.0.2/٨", "\0", *VERSIONS]
)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([1 << 63, 1 << 70])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | _words,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "address", "IPS", "type", "x"]), inner)
    ),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """A *valid* configuration in which up to three values are exchanged, taken away or renamed; a tenth ends too early."""
    document = copy.deepcopy(valid)
    document["cniVersion"] = draw(st.sampled_from(VERSIONS))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(_places(document)[1:]))
        holder: Any = document
        for step in place[:-1]:
            holder = holder[step]
        match draw(st.sampled_from(["exchange", "remove", "rename"])):
            case "remove":
                del holder[place[-1]]
            case "rename" if isinstance(holder, dict):
                holder[place[-1].upper()] = holder.pop(place[-1])
            case _:
                holder[place[-1]] = draw(_values)
        if len(document) < 2:
            break
    body = json.dumps(document).encode()
    return body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 9)) == 0 else body


_texts = st.text(st.characters(), max_size=20)  # with surrogates, as bytes that are no UTF-8 come out of the environment
_environs = st.fixed_dictionaries(
    {"CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"])},
    optional={
        "CNI_CONTAINERID": st.just("c1") | _texts,
        "CNI_NETNS": st.just("/run/netns/blue") | _texts | st.sampled_from(["/", "a\0b", "/proc/self/ns/net", "/own"]),
        "CNI_IFNAME": st.just("eth0") | _texts,
        "CNI_ARGS": st.sampled_from(["", "IP=10.0.0.5/24;GATEWAY=10.0.0.1", "K8S_POD_NAME=a;IgnoreUnknown=1"]) | _texts,
        "CNI_PATH": st.just("/opt/cni/bin") | _texts,
        "CNI_NETNS_OVERRIDE": st.just("1") | _texts,
    },
)
_complete = st.builds(
    lambda environ: {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin", **environ},
    st.fixed_dictionaries({"CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS"])}),
)


class PassingOn(StaticPlugin):
    """Answers the result that it is given, as a chained plugin does; its own where there is none."""

    def add(self, call: Call[StaticConf]) -> Result:
        return call.prev_result or super().add(call)


def check_answer(environ: dict[str, str], stdin: bytes) -> None:
    outcome = answer(PassingOn(NODE), environ, stdin, lambda path: path == "/own")
    assert b"Traceback" not in outcome.stderr
    outcome.stderr.decode()
    command = environ.get("CNI_COMMAND")
    if outcome.code == 0:
        if command == "ADD":
            assert json.loads(outcome.stdout)["cniVersion"] in VERSIONS
        elif command != "VERSION":
            assert outcome.stdout == b""
        return
    check_error(outcome)


def check_error(outcome: Outcome) -> None:
    """See that it is an error object as the specification has it, and no defect of ours."""
    error = json.loads(outcome.stdout)
    assert outcome.code == 1
    assert error["cniVersion"] in VERSIONS
    assert isinstance(error["code"], int)
    assert error["code"] != Code.INTERNAL, error
    assert isinstance(error["msg"], str)
    assert error["msg"]
    assert set(error) <= {"cniVersion", "code", "msg", "details"}
    assert b"Traceback" not in outcome.stderr


@settings(max_examples=1500, deadline=None)
@given(_complete, mutated(VALID))
def test_configurations_that_are_nearly_right(environ: dict[str, str], stdin: bytes) -> None:
    check_answer(environ, stdin)


@settings(max_examples=1000, deadline=None)
@given(_environs, mutated(VALID))
def test_environments(environ: dict[str, str], stdin: bytes) -> None:
    check_answer(environ, stdin)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(VARIABLES), _texts), st.binary(max_size=100))
@example({"CNI_COMMAND": "ADD"}, b"\xff" * 100)
def test_bytes(environ: dict[str, str], stdin: bytes) -> None:
    check_answer(environ, stdin)


@settings(max_examples=1000, deadline=None)
@given(_complete, st.builds(lambda value: json.dumps(value).encode(), _values))
def test_any_json(environ: dict[str, str], stdin: bytes) -> None:
    check_answer(environ, stdin)
