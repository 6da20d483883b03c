"""The host driver: the sandbox is the host's own netns; there is nothing to make."""

from netlib.driverapi import NoOptions
from netlib.errors import ConfigError
from netlib.model import Endpoint, Network, Sandbox, Scope
from netlib.plan import Plan


class HostDriver:
    """Shares the host's links, addresses and ports."""

    name = "host"
    scope = Scope.LOCAL
    network_options = NoOptions
    endpoint_options = NoOptions

    def sandbox_netns(self) -> str | None:
        """The host's own."""
        return ""

    def validate_network(self, network: Network) -> None:
        """Refuse a second network of this driver: the predefined one is the only one."""
        if not network.predefined:
            raise ConfigError(f"network {network.name!r}: there is one network of driver host, called host; use that one")

    def network_plan(self, network: Network) -> Plan:
        """Nothing: the host is there already."""
        return Plan()

    def join_plan(self, network: Network, endpoint: Endpoint, sandbox: Sandbox) -> Plan:
        """Nothing: the sandbox is the host."""
        return Plan()
