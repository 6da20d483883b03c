"""What people ask of ``run``: texts read, contradictions refused, names made up."""

from ipaddress import ip_address
from typing import Any

import pytest

from netlib.errors import ConfigError
from netlib.ports import parse_publish
from netlib.requests import Join, read
from netlib.runtime.container import State
from netlib.runtime.spec import (
    ContainerSpec,
    RunRequest,
    Volume,
    check_spec,
    generate_name,
    parse_signal,
    parse_sysctls,
    parse_volume,
)
from netlib.verbs.inspect import duration
from netlib.verbs.inspect_container import status_text


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/a:/b", Volume("/a", "/b")),
        ("/a:/b:ro", Volume("/a", "/b", readonly=True)),
        ("/a:/b:rw", Volume("/a", "/b")),
        ("/a/../c/:/b//d/", Volume("/c", "/b/d")),
        ("//a:/x/../../b", Volume("/a", "/b")),
    ],
)
def test_volume(text: str, volume: Volume) -> None:
    assert parse_volume(text) == volume


@pytest.mark.parametrize(
    "text", ["", "/a", "a:/b", "/a:b", "/a:/b:xx", "/a:/b:ro:z", "/a:/", "/a:/x/..", "/a:/proc", "/a:/proc/sys", "/a:/b\0"]
)
def test_malformed_volume(text: str) -> None:
    with pytest.raises(ConfigError, match="volume"):
        parse_volume(text)


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("SIGKILL", 9), ("usr1", 10), ("9", 9)])
def test_signal(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "99", "NOPE", "-9"])
def test_unknown_signal(text: str) -> None:
    with pytest.raises(ConfigError, match="signal"):
        parse_signal(text)


def test_sysctls() -> None:
    assert parse_sysctls(["net.ipv4.ip_forward=0", "net/ipv4/ip_forward=1", "net.ipv4.tcp_rmem=1 2 3"]) == {
        "net/ipv4/ip_forward": "1",
        "net/ipv4/tcp_rmem": "1 2 3",
    }
    for wrong in ("kernel.shmmax=1", "kernel.shmmax"):
        with pytest.raises(ConfigError, match=f"^sysctl '{wrong}' is not allowed: NAME=VALUE with a NAME of net.* is expected"):
            parse_sysctls([wrong])
    for wrong in ("=1", ""):
        with pytest.raises(ConfigError, match="^'' is no sysctl name"):
            parse_sysctls([wrong])
    for name in ("net.ipv4.ip_forward", "net/x"):
        for wrong in (name, f"{name}="):
            with pytest.raises(ConfigError, match=f"^sysctl '{name}': no value given; write {name}=VALUE$"):
                parse_sysctls([wrong])


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (ContainerSpec(command=()), "no command"),
        (ContainerSpec(command=("",)), "no command"),
        (ContainerSpec(command=("a\0b",)), "NUL"),
        (ContainerSpec(command=("a",), netns_of="web", publish=parse_publish("80")), "publish"),
        (ContainerSpec(command=("a",), netns_of="web", hostname="x"), "hostname"),
        (ContainerSpec(command=("a",), netns_of="web", sysctls={"net/a/b": "1"}), "net.a.b\" not allowed in container 'web'"),
        (
            ContainerSpec(command=("a",), networks=(Join(network="host"),), sysctls={"net/a": "1"}),
            'sysctl "net.a" not allowed in host network namespace',
        ),
        (ContainerSpec(command=("a",), workdir="x"), "absolute"),
        (ContainerSpec(command=("a",), volumes=(Volume("/a", "/b"), Volume("/c", "/b"))), "same target"),
        (ContainerSpec(command=("a",), networks=tuple(Join(network=n) for n in ("host", "web"))), "combined"),
    ],
)
def test_contradictions(spec: ContainerSpec, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_spec(spec)


def run_spec(**given: Any) -> ContainerSpec:
    return read(RunRequest, {"command": ["true"], **given}).spec


def test_options_of_the_first_network_and_the_long_form() -> None:
    spec = run_spec(
        networks=["name=web,ip=10.0.0.5,alias=a,alias=b,gw-priority=-1", "other"],
        aliases=["c"],
        ip6="fd00::5",
        links=["db:mysql"],
        resolver={"extra_hosts": ["printer:10.0.0.9", "six=[fd00::9]"]},
    )
    first, second = spec.networks
    assert (first.network, first.ip, first.ip6, first.aliases, first.gw_priority) == (
        "web",
        ip_address("10.0.0.5"),
        ip_address("fd00::5"),
        ("a", "b", "c"),
        -1,
    )
    assert (first.links[0].name, first.links[0].alias) == ("db", "mysql")
    assert second == Join(network="other")
    assert [(name, str(address)) for name, address in spec.resolver.extra_hosts] == [
        ("printer", "10.0.0.9"),
        ("six", "fd00::9"),
    ]


def test_a_container_may_use_another_ones_network_alone() -> None:
    spec = run_spec(networks=["container:web"])
    assert (spec.netns_of, spec.networks) == ("web", ())
    with pytest.raises(ConfigError, match="leave out the other networks"):
        run_spec(networks=["container:web", "other"])
    with pytest.raises(ConfigError, match="no addresses"):
        run_spec(networks=["container:web"], ip="10.0.0.1")


@pytest.mark.parametrize("text", ["name=web,colour=red", "ip=10.0.0.1", "name=", "name=web,gw-priority=high"])
def test_malformed_network(text: str) -> None:
    with pytest.raises(ConfigError, match="--network"):
        run_spec(networks=[text])


def test_what_is_kept_of_a_request_is_all_that_a_container_is() -> None:
    given = {"name": "box", "hostname": "h", "tty": True, "publish": ["8080:80"], "labels": ["a=b"], "stop_signal": "INT"}
    spec = run_spec(**given, volumes=["/a:/b:ro"], sysctls=["net.ipv4.ip_forward=1"], environment={"A": "1"}, workdir="/w")
    assert spec == ContainerSpec(
        command=("true",),
        name="box",
        hostname="h",
        tty=True,
        publish=parse_publish("8080:80"),
        labels={"a": "b"},
        stop_signal=2,
        volumes=(Volume("/a", "/b", readonly=True),),
        sysctls={"net/ipv4/ip_forward": "1"},
        environment={"A": "1"},
        workdir="/w",
    )


def test_generated_names_never_clash() -> None:
    taken: set[str] = set()
    for _ in range(2000):
        name = generate_name(taken)
        assert name not in taken
        taken.add(name)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (7300, "2 hours"),
        (200000, "2 days"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_status() -> None:
    assert status_text(State(), 0) == "Created"
    assert status_text(State(status="running", started=10), 15) == "Up 5 seconds"
    assert status_text(State(status="exited", code=3, finished=10), 130) == "Exited (3) 2 minutes ago"
