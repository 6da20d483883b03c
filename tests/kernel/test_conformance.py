"""The conformance kit: our own drivers, and somebody else's."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from netlib.testing import IpamDriverSuite, NetworkDriverSuite
from tests.plugins_world import Service, installed


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


class TestBridge(NetworkDriverSuite):
    driver = "bridge"
    network = {"subnets": ["10.203.0.0/24", "fd00:203::/64"], "options": {"com.docker.network.driver.mtu": "1400"}}
    endpoint = {"ports": ["8080:80"], "aliases": ["www"]}


class TestMacvlan(NetworkDriverSuite):
    driver = "macvlan"
    network = {"subnets": ["10.203.0.0/24"], "options": {"parent": "lan0"}}

    def set_up(self) -> None:
        _ip("link add lan0 type veth peer lan0-end")
        _ip("link set lan0 up")

    def tear_down(self) -> None:
        _ip("link delete lan0")


@pytest.mark.needs_link_kind("ipvlan")
class TestIpvlan(TestMacvlan):
    driver = "ipvlan"


class TestDefaultIpam(IpamDriverSuite):
    ipam_driver = "default"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody else's package, installed."""
    with installed(monkeypatch.syspath_prepend):
        yield


@pytest.mark.usefixtures("package")
class TestRouted(NetworkDriverSuite):
    """A network driver of theirs, with a kernel object of theirs."""

    driver = "routed"
    network = {"subnets": ["10.203.0.0/24"], "options": {"acme.queue": "300"}}


@pytest.mark.usefixtures("package")
class TestAcmeIpam(IpamDriverSuite):
    """An IPAM driver of theirs, which asks another process."""

    ipam_driver = "acme"
    _service: Service

    def network_keywords(self) -> Mapping[str, Any]:
        return {**super().network_keywords(), "ipam_options": self._service.options}

    def set_up(self) -> None:
        type(self)._service = Service(f"/run/acme-{os.getpid()}.sock", seconds=0)

    def tear_down(self) -> None:
        self._service.close()

    def outside(self) -> object:
        return self._service.held()
