"""What people ask of ``run``: texts read, contradictions refused, names made up."""

import pytest

from netlib.errors import ConfigError
from netlib.runtime.container import State
from netlib.runtime.spec import (
    ContainerSpec,
    NetworkAttachment,
    Volume,
    check_spec,
    generate_name,
    parse_environment,
    parse_signal,
    parse_sysctls,
    parse_volume,
)
from netlib.verbs.container import read_spec
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


def test_environment_takes_values_from_the_caller_for_bare_names() -> None:
    assert parse_environment(["A=1", "B", "C", "D=", "E=x=y"], {"B": "2"}) == {"A": "1", "B": "2", "D": "", "E": "x=y"}
    with pytest.raises(ConfigError):
        parse_environment(["=1"], {})


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
        (ContainerSpec(command=("a",), netns_of="web", publish=("80",)), "publish"),
        (ContainerSpec(command=("a",), netns_of="web", hostname="x"), "hostname"),
        (ContainerSpec(command=("a",), netns_of="web", sysctls={"net/a/b": "1"}), "net.a.b\" not allowed in container 'web'"),
        (
            ContainerSpec(command=("a",), networks=(NetworkAttachment(network="host"),), sysctls={"net/a": "1"}),
            'sysctl "net.a" not allowed in host network namespace',
        ),
        (ContainerSpec(command=("a",), workdir="x"), "absolute"),
        (ContainerSpec(command=("a",), volumes=(Volume("/a", "/b"), Volume("/c", "/b"))), "same target"),
        (ContainerSpec(command=("a",), networks=tuple(NetworkAttachment(network=n) for n in ("host", "web"))), "combined"),
    ],
)
def test_contradictions(spec: ContainerSpec, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_spec(spec)


def test_options_of_the_first_network_and_the_long_form() -> None:
    spec = read_spec(
        command=["true"],
        networks=["name=web,ip=10.0.0.5,alias=a,alias=b,gw-priority=-1", "other"],
        aliases=["c"],
        ip6="fd00::5",
        links=["db:mysql"],
        add_hosts=["printer:10.0.0.9", "six=[fd00::9]"],
    )
    first, second = spec.networks
    assert (first.network, first.ip, first.ip6, first.aliases, first.gw_priority) == (
        "web",
        "10.0.0.5",
        "fd00::5",
        ("a", "b", "c"),
        -1,
    )
    assert (first.links[0].name, first.links[0].alias) == ("db", "mysql")
    assert second == NetworkAttachment(network="other")
    assert [(name, str(address)) for name, address in spec.resolver.extra_hosts] == [
        ("printer", "10.0.0.9"),
        ("six", "fd00::9"),
    ]


def test_a_container_may_use_another_ones_network_alone() -> None:
    spec = read_spec(command=["true"], networks=["container:web"])
    assert (spec.netns_of, spec.networks) == ("web", ())
    with pytest.raises(ConfigError, match="alone"):
        read_spec(command=["true"], networks=["container:web", "other"])
    with pytest.raises(ConfigError, match="no addresses"):
        read_spec(command=["true"], networks=["container:web"], ip="10.0.0.1")


@pytest.mark.parametrize("text", ["name=web,colour=red", "ip=10.0.0.1", "name=", "name=web,gw-priority=high"])
def test_malformed_network(text: str) -> None:
    with pytest.raises(ConfigError, match="--network"):
        read_spec(command=["true"], networks=[text])


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
