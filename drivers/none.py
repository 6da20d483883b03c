"""The none driver: a netns of its own with lo and nothing else."""

from netlib.driverapi import NoOptions
from netlib.errors import ConfigError
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.plan import Plan


class NoneDriver:
    """Leaves a sandbox alone with its loopback."""

    name = "none"
    scope = Scope.LOCAL
    network_options = NoOptions
    endpoint_options = NoOptions

    def sandbox_netns(self) -> str | None:
        """None: each sandbox has a netns of its own."""
        return None

    def validate_network(self, network: Network) -> None:
        """Refuse a second network of this driver: the predefined one is the only one."""
        if not network.predefined:
            raise ConfigError(f"network {network.name!r}: there is one network of driver none, called none; use that one")

    def network_plan(self, network: Network) -> Plan:
        """Nothing."""
        return Plan()

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """Nothing: every netns has lo."""
        return Plan()
