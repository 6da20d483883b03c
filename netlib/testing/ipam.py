"""The suite for IPAM drivers."""

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from netlib.core.controller import Controller
from netlib.errors import ConfigError, NetlibError
from netlib.ipamapi import IpamDriver
from netlib.model import Endpoint
from netlib.registry import ipam_driver
from netlib.testing.host import TestedHost
from netlib.testing.suite import NETWORK, Suite

__all__ = ["IpamDriverSuite"]

_MEMBERS = 5


class IpamDriverSuite(Suite):
    """What every IPAM driver must hold; a subclass names it by ``ipam_driver``."""

    ipam_driver: str
    driver = "bridge"
    """The network driver that its addresses are used with."""

    def network_keywords(self) -> Mapping[str, Any]:
        return {"driver": self.driver, "ipam_driver": self.ipam_driver, **self.network}

    def find_driver(self) -> IpamDriver:
        return ipam_driver(self.ipam_driver)

    def _members(self, controller: Controller, count: int) -> list[Endpoint]:
        names = [f"member{number}" for number in range(count)]
        for name in names:
            controller.create_sandbox(name)
        return [controller.connect(NETWORK, name, **self.endpoint) for name in names]

    def test_addresses_differ_and_are_in_the_subnet(self, host: TestedHost) -> None:
        with host.controller() as controller:
            self.create_network(controller)
            network = controller.network(NETWORK)
            members = self._members(controller, _MEMBERS)
        taken = [pool.gateway for pool in network.pools if pool.gateway is not None]
        taken += [address.ip for member in members for address in member.addresses]
        assert len(set(taken)) == len(taken)
        subnets = [pool.subnet for pool in network.pools]
        assert subnets
        for member in members:
            assert [address.network for address in member.addresses] == subnets

    def test_subnets_of_networks_do_not_overlap(self, host: TestedHost) -> None:
        with host.controller() as controller:
            networks = [controller.create_network(f"net{number}", **self.network_keywords()) for number in range(3)]
        subnets = [pool.subnet for network in networks for pool in network.pools]
        for number, subnet in enumerate(subnets):
            assert not [other for other in subnets[number + 1 :] if other.overlaps(subnet)]

    def test_what_is_given_back_is_free_again(self, host: TestedHost) -> None:
        with host.controller() as controller:
            self.create_network(controller)
        before = host.state()
        with host.controller() as controller:
            self._members(controller, _MEMBERS)
            for number in range(_MEMBERS):
                controller.remove_sandbox(f"member{number}")
        host.assert_same(before, "members came and went")

    def test_a_network_is_used_again_after_a_boot(self, host: TestedHost) -> None:
        """After a boot the network's objects are made at its first use, which leases an address as any other does."""
        with host.controller() as controller:
            self.create_network(controller)
            self._members(controller, 1)
            network = controller.network(NETWORK)
            with controller.store.write() as tx:
                tx.stamp(network.id, "")
            controller.create_sandbox("after")
            assert controller.connect(NETWORK, "after", **self.endpoint).addresses

    def test_an_address_that_is_taken_is_refused(self, host: TestedHost) -> None:
        with host.controller() as controller:
            self.create_network(controller)
            (member,) = self._members(controller, 1)
            controller.create_sandbox("late")
        before = host.state()
        wanted = str(ip_interface(member.addresses[0]).ip)
        with host.controller() as controller, pytest.raises(NetlibError):
            controller.connect(NETWORK, "late", ip=wanted)
        host.assert_same(before, "an address that is taken")

    def test_an_address_outside_the_subnet_is_refused(self, host: TestedHost) -> None:
        with host.controller() as controller:
            self.create_network(controller)
            controller.create_sandbox("late")
            subnet = ip_network(controller.network(NETWORK).pools[0].subnet)
        before = host.state()
        wanted = str(subnet.broadcast_address + 1)
        with host.controller() as controller, pytest.raises(NetlibError):
            controller.connect(NETWORK, "late", ip=wanted)
        host.assert_same(before, "an address outside")

    def test_an_option_that_it_does_not_have_is_refused(self, host: TestedHost) -> None:
        before = host.state()
        keywords = dict(self.network_keywords())
        keywords["ipam_options"] = {**keywords.get("ipam_options", {}), "no.such.option": "1"}
        with host.controller() as controller, pytest.raises(ConfigError, match=r"no\.such\.option"):
            controller.create_network(NETWORK, **keywords)
        host.assert_same(before, "a refused option")
