"""What a Python program asks for, read before anything is done: a text where a list is meant, and other wrong types."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from msgspec import NODEFAULT, Struct, structs

from netlib.config import Config
from netlib.core.controller import Controller
from netlib.errors import ConfigError
from netlib.model import Link, ResolverConfig
from netlib.ports import parse_publish
from netlib.requests import ConnectRequest, NetworkRequest, SandboxRequest, read


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (NetworkRequest, {"name": None}, "name=None must be a text"),
        (NetworkRequest, {"name": "x", "subnets": "10.0.0.0/24"}, "subnets='10.0.0.0/24' must be a list or tuple"),
        (NetworkRequest, {"name": "x", "internal": 1}, "internal=1 must be True or False"),
        (NetworkRequest, {"name": "x", "options": "a=b"}, "options='a=b' must be a dict with texts as keys and values"),
        (NetworkRequest, {}, "no name given"),
        (NetworkRequest, {"name": "x", "auxiliary": "a"}, "auxiliary='a' must be a dict with texts as keys"),
        (NetworkRequest, {"name": "x", "labels": {"a": 1}}, "labels={'a': 1} must be a dict with texts as keys and values"),
        (ConnectRequest, {"aliases": "abc"}, "aliases='abc' must be a list or tuple of texts"),
        (ConnectRequest, {"aliases": ["abc", 1]}, "aliases=['abc', 1] must be a list or tuple of texts"),
        (
            ConnectRequest,
            {"ports": "8080:80"},
            "ports='8080:80' must be a list or tuple of ports, written like \"8080:80\"",
        ),
        (ConnectRequest, {"ports": ["8080:"]}, "published port '8080:' lacks the container port"),
        (ConnectRequest, {"links": [5]}, "links=[5] must be a list or tuple of links, written like NAME or NAME:ALIAS"),
        (ConnectRequest, {"gw_priority": "1"}, "gw_priority='1' must be a whole number"),
        (ConnectRequest, {"alias": ["a"]}, "there is no argument 'alias'; there are: network, ifname, ip, ip6, mac, aliases"),
        (SandboxRequest, {"name": "x", "netns": 3}, "netns=3 must be a text, or None"),
        (SandboxRequest, {"name": "x", "resolver": None}, "resolver=None must be a netlib.model.ResolverConfig"),
        (ResolverConfig, {"servers": "1.1.1.1"}, "servers='1.1.1.1' must be a list or tuple of IP addresses"),
        (ResolverConfig, {"servers": ["here"]}, "servers=['here'] must be a list or tuple of IP addresses"),
        (ResolverConfig, {"search": "example.org"}, "search='example.org' must be a list or tuple of texts"),
        (ResolverConfig, {"extra_hosts": ["db"]}, "extra_hosts=['db'] must be a list or tuple of pairs of a name and an IP"),
    ],
)
def test_what_is_of_the_wrong_type_is_named(kind: type[Struct], values: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(kind, values)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("kind", [NetworkRequest, SandboxRequest, ConnectRequest, ResolverConfig])
def test_every_field_has_words_for_what_it_takes(kind: type[Struct]) -> None:
    for name in kind.__struct_fields__:
        wrong = rf"{name.replace('6', '')}.* is no IP address" if name in ("ip", "ip6") else rf"{name}=<.*> must be "
        with pytest.raises(ConfigError, match=wrong):
            read(kind, {name: object()})


def test_what_is_right_stays_as_it_is() -> None:
    links, ports, address = [Link("a", "b")], list(parse_publish("8080:80")), ip_address("10.0.0.9")
    request = read(ConnectRequest, {"aliases": ("a",), "ports": ports, "links": links, "ip": address})
    assert (request.aliases, request.ports, request.links, request.ip) == (("a",), tuple(ports), tuple(links), address)
    for server in ("10.0.0.9", address):
        assert read(ResolverConfig, {"servers": [server]}).servers == (address,)


@pytest.mark.parametrize("folder", [None, 5, b"/srv", ""])
def test_folders_are_paths(folder: Any) -> None:
    with pytest.raises(ConfigError, match="state_dir=.* is no path"):
        Config(folder)


def test_folders_may_be_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config("state", run_dir=str(tmp_path / "run"))
    assert config == Config(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    assert config.lock_dir == tmp_path / "run" / "locks"


@pytest.mark.parametrize(
    ("verb", "request_type", "named"),
    [
        (Controller.create_network, NetworkRequest, {}),
        (Controller.create_sandbox, SandboxRequest, {}),
        (Controller.connect, ConnectRequest, {"sandbox": "container"}),
    ],
)
def test_keywords_are_the_fields_of_the_request(
    verb: Callable[..., object], request_type: type[Struct], named: Mapping[str, str]
) -> None:
    """With the same defaults: they are written twice, for ``help()`` and for type checkers."""
    parameters = inspect.signature(verb).parameters.values()
    keywords = {named.get(item.name, item.name): item for item in parameters if item.name != "self"}
    fields = {field.name: field for field in structs.fields(request_type)}
    assert set(keywords) == set(fields)
    for name, item in keywords.items():
        if item.kind is item.KEYWORD_ONLY:
            assert item.default == (
                fields[name].default_factory() if fields[name].default is NODEFAULT else fields[name].default
            )


WRONG = """
import netlib

with netlib.Controller() as controller:
    controller.create_network("a", subnet=["10.0.0.0/24"])
    controller.create_network("a", subnets="10.0.0.0/24")
    controller.connect("a", "b", ip=5)
    network = controller.create_network("a", subnets=["10.0.0.0/24"])
    controller.connect(network, controller.create_sandbox("b"), ports=["8080:80"])
"""


ROOT = Path(__file__).parents[2]


def _complaints(program: str, text: str) -> list[str]:
    """The errors that mypy finds in *text*, each from its line's number on."""
    cache = ROOT / ".mypy_cache"
    path = cache / program  # the cache keeps its path
    cache.mkdir(exist_ok=True)
    path.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}", "--no-error-summary", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout
    return [line.partition(f"{program}:")[2] for line in found.splitlines() if ": error:" in line]


@pytest.mark.timeout(240)  # without its cache, it reads everything that netlib imports
def test_a_type_checker_accepts_the_documented_driver() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    (documented,) = [block for block in blocks if "class PointToPoint:" in block]
    contract = "from netlib.driverapi import Driver\n\nchecked: Driver = PointToPoint()\n"
    assert _complaints("documented_driver.py", documented + contract) == []


@pytest.mark.timeout(240)
def test_a_type_checker_refuses_a_wrong_keyword() -> None:
    lines = _complaints("wrong_keyword.py", WRONG)
    assert [line.partition(":")[0] for line in lines] == ["5", "7"]
    assert 'Unexpected keyword argument "subnet" for "create_network" of "Controller"' in lines[0]
