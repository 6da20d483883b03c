"""The suite for network drivers."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from netlib.codec import encode
from netlib.core.controller import Controller
from netlib.driverapi import Addressless, Driver, PublishesPorts
from netlib.errors import ConfigError
from netlib.model import HOST
from netlib.plan import KernelObject, Plan
from netlib.registry import driver
from netlib.store.objects import decode_object
from netlib.testing.host import TestedHost
from netlib.testing.snapshot import differences, snapshot
from netlib.testing.suite import NETWORK, SANDBOX, Suite

__all__ = ["NetworkDriverSuite"]


class NetworkDriverSuite(Suite):
    """What every network driver must hold; a subclass names it by ``driver``."""

    driver: str

    def network_keywords(self) -> Mapping[str, Any]:
        return {"driver": self.driver, **self.network}

    def find_driver(self) -> Driver:
        return driver(self.driver)

    def _connected(self, host: TestedHost) -> None:
        host.perform([self.create_network, self.create_sandbox, self.connect])

    def _plans(self, controller: Controller) -> Iterator[Plan]:
        network, sandbox = controller.network(NETWORK), controller.sandbox(SANDBOX)
        (endpoint,) = controller.endpoints(network=NETWORK)
        known = self.find_driver()
        yield known.network_plan(network)
        yield known.join_plan(network, endpoint, sandbox)

    def test_plans_follow_from_the_records_alone(self, host: TestedHost) -> None:
        self._connected(host)
        with host.controller() as controller:
            assert [*self._plans(controller)] == [*self._plans(controller)]

    def test_objects_read_as_they_are_written(self, host: TestedHost) -> None:
        self._connected(host)
        with host.controller() as controller:
            for item in (item for plan in self._plans(controller) for item in plan):
                assert decode_object(encode(item), str(item.key)) == item
                assert all(isinstance(command, str) for command in item.commands())

    def test_what_is_written_down_is_in_the_kernel(self, host: TestedHost) -> None:
        self._connected(host)
        with host.controller() as controller:
            assert controller.check(NETWORK) == []
            assert controller.check(SANDBOX) == []

    def test_ensure_may_be_repeated(self, host: TestedHost) -> None:
        self._connected(host)
        before = host.state()
        with host.controller() as controller:
            (endpoint,) = controller.endpoints(network=NETWORK)
            for record in (controller.network(NETWORK).id, endpoint.id):
                with controller.store.read() as tx:
                    plan = tx.objects(record)
                with controller.engine.kernel(record) as kernel:
                    for run in plan.runs():
                        type(run[0]).ensure_many(kernel, run)
        host.assert_same(before, "every object again")

    def test_what_somebody_removes_is_missed(self, host: TestedHost) -> None:
        """An object that is removed behind our back says so, unless its removal changed nothing."""
        self._connected(host)
        with host.controller() as controller:
            for item in reversed(self._own_objects(controller)):
                with controller.engine.kernel("") as kernel:
                    before = [snapshot(netns) for netns in (HOST, item.netns)]
                    item.remove(kernel)
                    after = [snapshot(netns) for netns in (HOST, item.netns)]
                    if any(differences(*pair) for pair in zip(before, after, strict=True)):
                        assert item.drift(kernel), f"{item.key} was removed, and its drift() says nothing"
                    item.remove(kernel)  # a no-op when it is gone

    def _own_objects(self, controller: Controller) -> list[KernelObject]:
        """The driver's own, as they are written down."""
        keys = {item.key for plan in self._plans(controller) for item in plan}
        written = (*controller.plan_of(NETWORK), *controller.plan_of(SANDBOX))
        return [item for item in written if item.key in keys and not item.shared]

    def test_ports_are_published_or_refused(self, host: TestedHost) -> None:
        """A driver without PublishesPorts must not seem to publish: the request is refused, and nothing is left."""
        host.perform([self.create_network, self.create_sandbox])
        before, known = host.state(), self.find_driver()
        if isinstance(known, Addressless):
            pytest.skip("its sandboxes have no addresses, so there is nothing to publish")
        keywords = {**self.endpoint, "ports": ["18080:80"]}
        with host.controller() as controller:
            if isinstance(known, PublishesPorts):
                endpoint, network = controller.connect(NETWORK, SANDBOX, **keywords), controller.network(NETWORK)
                plans = [known.publish_plan(network, address.ip, endpoint.ports) for address in endpoint.addresses]
                wanted = {item.key for plan in plans for item in plan}
                assert wanted, "publish_plan has no object for a port that was asked for"
                assert wanted <= set(controller.plan_of(SANDBOX).keys)
                return
            with pytest.raises(ConfigError, match="publishes no ports"):
                controller.connect(NETWORK, SANDBOX, **keywords)
        host.assert_same(before, "refused ports")

    def test_an_option_that_it_does_not_have_is_refused(self, host: TestedHost) -> None:
        before = host.state()
        keywords = dict(self.network_keywords())
        keywords["options"] = {**keywords.get("options", {}), "no.such.option": "1"}
        with host.controller() as controller, pytest.raises(ConfigError, match=r"no\.such\.option"):
            controller.create_network(NETWORK, **keywords)
        host.assert_same(before, "a refused option")
