"""What the suites have in common: a host of the test's own, and the records that are asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller
from netlib.errors import NetlibError
from netlib.testing.host import TestedHost, in_test_host

__all__ = ["NETWORK", "SANDBOX", "Suite"]

NETWORK, SANDBOX = "conformance", "box"


class Suite:
    """What a subclass says; each may also be a property or a method of it."""

    network: Mapping[str, Any] = {}
    """Keywords of :meth:`netlib.Controller.create_network`, besides the driver that is tested."""
    endpoint: Mapping[str, Any] = {}
    """Keywords of :meth:`netlib.Controller.connect`."""

    def network_keywords(self) -> Mapping[str, Any]:
        """What each network of the tests is made with: *network*, and the driver."""
        raise NotImplementedError

    def find_driver(self) -> object:
        """Return the driver that is tested; NotFound, PackageFailed where there is none that can be used."""
        raise NotImplementedError

    def require_driver(self) -> None:
        """Fail the test with one sentence where the suite names a driver that cannot be found or loaded."""
        try:
            self.find_driver()
        except NetlibError as error:
            pytest.fail(f"{type(self).__name__}: {error}", pytrace=False)

    def set_up(self) -> None:
        """Make what the driver needs of the host: a parent link, a server. Called once a test, in a host without networks."""

    def tear_down(self) -> None:
        """Take back what :meth:`set_up` made."""

    def outside(self) -> object:
        """What is held outside of the host by the driver's doing, such as a server's leases; compared before and after."""
        return None

    @pytest.fixture
    def host(self, tmp_path: Path) -> Iterator[TestedHost]:
        """A host on which a network was already made and removed.

        What that leaves (the firewall's base, forwarding) is in every compared state.
        """
        if not in_test_host():
            pytest.fail("this changes the network: run it by `python -m netlib.testing pytest …`", pytrace=False)
        self.require_driver()
        host = TestedHost(Config(state_dir=tmp_path / "state", run_dir=tmp_path / "run"), self.outside)
        self.set_up()
        try:
            host.perform([_warm_up])
            yield host
        finally:
            host.perform([Controller.reset])
            self.tear_down()

    # --- what the tests do ------------------------------------------------------------------------------------------

    def create_network(self, controller: Controller) -> None:
        """Make the network."""
        controller.create_network(NETWORK, **self.network_keywords())

    def create_sandbox(self, controller: Controller) -> None:
        """Make a sandbox."""
        controller.create_sandbox(SANDBOX)

    def connect(self, controller: Controller) -> None:
        """Put the sandbox on the network."""
        controller.connect(NETWORK, SANDBOX, **self.endpoint)

    def disconnect(self, controller: Controller) -> None:
        """Take it off again."""
        controller.disconnect(NETWORK, SANDBOX)

    def remove_network(self, controller: Controller) -> None:
        """Remove the network."""
        controller.remove_network(NETWORK)

    def remove_sandbox(self, controller: Controller) -> None:
        """Remove the sandbox, with its endpoint."""
        controller.remove_sandbox(SANDBOX)

    # --- every step fails, and is killed; nothing leaks ---------------------------------------------------------------

    def test_a_failed_network_leaves_nothing(self, host: TestedHost) -> None:
        host.assert_failures_leave_nothing([], self.create_network)

    def test_a_failed_endpoint_leaves_nothing(self, host: TestedHost) -> None:
        host.assert_failures_leave_nothing([self.create_network, self.create_sandbox], self.connect)

    def test_a_death_while_a_network_is_made_is_undone(self, host: TestedHost) -> None:
        host.assert_deaths_are_undone([], self.create_network)

    def test_a_death_while_an_endpoint_is_made_is_undone(self, host: TestedHost) -> None:
        host.assert_deaths_are_undone([self.create_network, self.create_sandbox], self.connect)

    def test_a_death_while_a_network_is_removed_is_finished(self, host: TestedHost) -> None:
        host.assert_deaths_are_finished([], [self.create_network], self.remove_network)

    def test_a_death_while_an_endpoint_is_removed_is_finished(self, host: TestedHost) -> None:
        host.assert_deaths_are_finished([self.create_network, self.create_sandbox], [self.connect], self.disconnect)

    def test_a_death_while_a_sandbox_is_removed_is_finished(self, host: TestedHost) -> None:
        host.assert_deaths_are_finished([self.create_network], [self.create_sandbox, self.connect], self.remove_sandbox)

    def test_a_reset_leaves_nothing(self, host: TestedHost) -> None:
        host.perform([Controller.reset])
        before = host.state()
        del before["rows"]  # a new store has other ids
        host.perform([self.create_network, self.create_sandbox, self.connect, Controller.reset])
        host.assert_same(before, "reset")


def _warm_up(controller: Controller) -> None:
    controller.create_sandbox("warm")
    controller.connect("bridge", "warm")
    controller.remove_sandbox("warm")
