"""Docker's publish syntax: what it means, and what is said of what it does not."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlib.errors import ConfigError
from netlib.model import PortMapping, Protocol
from netlib.ports import PortRequest, parse_expose, parse_publish, port_runs


def port(container: int, first: int = 0, last: int = 0, ip: str = "", protocol: Protocol = Protocol.TCP) -> PortRequest:
    return PortRequest(
        container_port=container,
        protocol=protocol,
        host_ip=ip_address(ip) if ip else None,
        host_port_first=first,
        host_port_last=last or first,
    )


@pytest.mark.parametrize(
    ("text", "requests"),
    [
        ("80", [port(80)]),
        (":80", [port(80)]),
        ("::80", [port(80)]),
        ("8080:80", [port(80, 8080)]),
        (":8080:80", [port(80, 8080)]),
        ("8080:80/udp", [port(80, 8080, protocol=Protocol.UDP)]),
        ("8080:80/TCP", [port(80, 8080)]),
        ("127.0.0.1::80", [port(80, ip="127.0.0.1")]),
        ("127.0.0.1:8080:80", [port(80, 8080, ip="127.0.0.1")]),
        ("0.0.0.0:8080:80", [port(80, 8080, ip="0.0.0.0")]),
        ("[::1]:8080:80", [port(80, 8080, ip="::1")]),
        ("[::]::80", [port(80, ip="::")]),
        ("::1:8080:80", [port(80, 8080, ip="::1")]),
        ("80-82", [port(80), port(81), port(82)]),
        ("8000-8002:80-82", [port(80, 8000), port(81, 8001), port(82, 8002)]),
        (
            "[::1]:8000-8001:80-81/udp",
            [port(80, 8000, ip="::1", protocol=Protocol.UDP), port(81, 8001, ip="::1", protocol=Protocol.UDP)],
        ),
        ("8000-8010:80", [port(80, 8000, 8010)]),
        ("8000-8000:80", [port(80, 8000)]),
        ("65535:1", [port(1, 65535)]),
    ],
)
def test_what_is_published(text: str, requests: list[PortRequest]) -> None:
    assert list(parse_publish(text)) == requests


def test_a_thousand_ports_in_one_text() -> None:
    requests = parse_publish("20000-20999:30000-30999")
    assert len(requests) == 1000
    assert requests[-1] == port(30999, 20999)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "lacks the container port; write it like"),
        ("8080:", "lacks the container port"),
        ("127.0.0.1:8080:", "lacks the container port"),
        ("0", "container port 0 is not between 1 and 65535"),
        ("8080:0", "container port 0 is not between 1 and 65535"),
        ("0:80", "host port 0 is not between 1 and 65535; leave the host port out for any free one"),
        ("65536", "container port 65536 is not between 1 and 65535"),
        ("65536:80", "host port 65536 is not between 1 and 65535"),
        ("1" * 5000, "is not between 1 and 65535"),
        ("8010-8000:80-90", "the host port range 8010-8000 runs backwards; write 8000-8010"),
        ("90-80", "the container port range 90-80 runs backwards; write 80-90"),
        ("8000-8010:80-81", "the ranges have 11 host ports and 2 container ports; make them equally long"),
        ("8080:80-81", "the ranges have 1 host ports and 2 container ports"),
        ("80-", "container port '' is no number"),
        ("80-81-82", "container port '81-82' is no number"),
        ("http", "container port 'http' is no number"),
        ("-80", "container port '' is no number"),
        (" 80", "container port ' 80' is no number"),
        ("8o:80", "host port '8o' is no number"),
        ("٨٠", "is no number"),
        ("80/sctp", "protocol 'sctp' is not supported; tcp and udp are"),
        ("80/", "protocol '' is not supported"),
        ("80/tcp/udp", "protocol 'tcp/udp' is not supported"),
        ("127.0.0.1:80", "has an address but one port only; write 127.0.0.1::80 for any free host port"),
        ("[::1]:80", "has an address but one port only; write [::1]::80"),
        ("127.0.0.300:8080:80", "host address '127.0.0.300' is no IP address"),
        ("web:8080:80", "host address 'web' is no IP address"),
        ("224.0.0.1:8080:80", "host address 224.0.0.1 is no single host's"),
        ("255.255.255.255:8080:80", "host address 255.255.255.255 is no single host's"),
        ("[ff02::1]:8080:80", "host address ff02::1 is no single host's"),
        ("[::1:8080:80", "host address '[::1' is no IP address"),
        ("[fe80::1%eth0]:8080:80", "host address 'fe80::1%eth0' is no IP address"),
    ],
)
def test_what_is_refused_quotes_the_text(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_publish(text)
    message = str(caught.value)
    assert reason in message
    assert message.startswith(f"published port {text!r}")
    assert "\n" not in message


@given(st.text(alphabet="0123456789:-/[].tcpudp", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        requests = parse_publish(text)
    except ConfigError:
        return
    assert all(1 <= one.container_port <= 65535 and 0 <= one.host_port_first <= one.host_port_last <= 65535 for one in requests)


def test_exposed_ports() -> None:
    assert parse_expose("80") == ((80, Protocol.TCP),)
    assert parse_expose("53-54/udp") == ((53, Protocol.UDP), (54, Protocol.UDP))
    with pytest.raises(ConfigError, match="exposed port '8080:80' names a host port"):
        parse_expose("8080:80")
    with pytest.raises(ConfigError, match="exposed port '0': container port 0 is not between 1 and 65535"):
        parse_expose("0")


def test_a_request_is_answered_by_a_mapping() -> None:
    request = parse_publish("127.0.0.1:8000-8010:80/udp")[0]
    answer = PortMapping(container_port=80, host_port=8003, protocol=Protocol.UDP, host_ip=ip_address("127.0.0.1"))
    assert request.mapping(8003) == answer


def mapping(host_port: int, container_port: int, protocol: Protocol = Protocol.TCP, host_ip: str = "") -> PortMapping:
    host = ip_address(host_ip) if host_ip else None
    return PortMapping(container_port=container_port, host_port=host_port, protocol=protocol, host_ip=host)


def test_runs_of_ports() -> None:
    """Both sides go up by one; protocol and address stay."""
    found = port_runs(
        [
            mapping(8000, 80),
            mapping(8001, 81),
            mapping(8002, 83),
            mapping(8003, 84, Protocol.UDP),
            mapping(8004, 85, Protocol.UDP, "127.0.0.1"),
            mapping(8005, 86, Protocol.UDP, "127.0.0.1"),
            mapping(8004, 85, Protocol.UDP, "127.0.0.1"),
        ]
    )
    assert [(first.host_port, count) for first, count in found] == [(8000, 2), (8002, 1), (8003, 1), (8004, 2), (8004, 1)]
    assert list(port_runs([])) == []
