"""What a Python program asks for, checked before anything is done: a text where a list is meant, and other wrong types."""

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from netlib.config import Config
from netlib.core.requests import ConnectRequest, NetworkRequest, SandboxRequest, checked
from netlib.errors import ConfigError
from netlib.model import Link, ResolverConfig
from netlib.ports import parse_publish


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (NetworkRequest, {"name": None}, "name=None must be a text"),
        (NetworkRequest, {"name": "x", "subnets": "10.0.0.0/24"}, "subnets='10.0.0.0/24' must be a list or tuple"),
        (NetworkRequest, {"name": "x", "internal": 1}, "internal=1 must be True or False"),
        (NetworkRequest, {"name": "x", "options": ["a=b"]}, "options=['a=b'] must be a dict with texts as keys and values"),
        (NetworkRequest, {"name": "x", "auxiliary": "a"}, "auxiliary='a' must be a dict with texts as keys"),
        (NetworkRequest, {"name": "x", "labels": {"a": 1}}, "labels={'a': 1} must be a dict with texts as keys and values"),
        (ConnectRequest, {"aliases": "abc"}, "aliases='abc' must be a list or tuple of texts"),
        (ConnectRequest, {"aliases": ["abc", 1]}, "aliases=['abc', 1] must be a list or tuple of texts"),
        (
            ConnectRequest,
            {"ports": "8080:80"},
            "ports='8080:80' must be a list of port requests, as netlib.ports.parse_publish makes it",
        ),
        (
            ConnectRequest,
            {"ports": ["8080:80"]},
            "ports=['8080:80'] must be a list of port requests, as netlib.ports.parse_publish makes it",
        ),
        (ConnectRequest, {"links": ["db"]}, "links=['db'] must be a list or tuple of netlib.model.Link"),
        (ConnectRequest, {"gw_priority": "1"}, "gw_priority='1' must be a whole number"),
        (ConnectRequest, {"alias": ["a"]}, "there is no argument 'alias'; there are: ifname, ip, ip6, mac, aliases, ports"),
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
        checked(kind, values)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("kind", [NetworkRequest, SandboxRequest, ConnectRequest, ResolverConfig])
def test_every_field_has_words_for_what_it_takes(kind: type[Struct]) -> None:
    for name in kind.__struct_fields__:
        if name in ("ip", "ip6"):  # read where they are used, as the items of subnets and the like
            continue
        with pytest.raises(ConfigError, match=rf"{name}=<.*> must be "):
            checked(kind, {name: object()})


def test_what_is_right_stays_as_it_is() -> None:
    links, ports, address = [Link("a", "b")], list(parse_publish("8080:80")), ip_address("10.0.0.9")
    request = checked(ConnectRequest, {"aliases": ("a",), "ports": ports, "links": links, "ip": address})
    assert (request.aliases, request.ports, request.links, request.ip) == (["a"], ports, links, address)
    for server in ("10.0.0.9", address):
        assert checked(ResolverConfig, {"servers": [server]}).servers == (address,)


@pytest.mark.parametrize("folder", [None, 5, b"/srv", ""])
def test_folders_are_paths(folder: Any) -> None:
    with pytest.raises(ConfigError, match="state_dir=.* is no path"):
        Config(folder)


def test_folders_may_be_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config("state", run_dir=str(tmp_path / "run"))
    assert config == Config(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    assert config.lock_dir == tmp_path / "run" / "locks"
