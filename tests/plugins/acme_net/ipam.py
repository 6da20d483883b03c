"""Addresses of a service that takes its time: asked before the transaction, by ``Prepares``."""

import json
import socket
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from netlib.errors import AddressTaken, ConfigError, Conflict, KernelError
from netlib.facts import AddressesAsked, Facts, PoolsAsked, World
from netlib.ipamapi import Leases, PoolRequest, Span
from netlib.model import GATEWAY, AddressPool, IPAddress, IPInterface, IPNetwork

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_SERVICE = "acme.service"


class AcmeIpam:
    """Subnets and addresses as the service gives them; the store's leases say who has which."""

    name = "acme"

    # --- asked of the service, outside of any transaction --------------------------------------------------------------

    def prepare(self, asked: Struct, world: World) -> Facts:
        """The service's answer; which one it is is noted before it is asked."""
        if isinstance(asked, PoolsAsked):
            request = asked.requests[0]
            if len(asked.requests) > 1 or request.family != 4:
                raise ConfigError("IPAM driver acme: the service has IPv4 subnets only; leave IPv6 off")
            service = _service(request.options)
            world.note({"service": service})
            wanted = {"subnet": str(request.subnet)} if request.subnet is not None else {}
            return {"service": service, **_ask(service, "take_subnet", record=asked.record, **wanted)}
        assert isinstance(asked, AddressesAsked)
        service = asked.network.facts["ipam"]["service"]
        world.note({"service": service})
        address = {"address": str(asked.preferred[0])} if asked.preferred else {}
        subnet = str(asked.network.pools[0].subnet)
        return {"service": service, **_ask(service, "take_address", record=asked.record, subnet=subnet, **address)}

    def release(self, record: str, facts: Mapping[str, Any], kernel: "Kernel") -> None:
        """Give it back."""
        if facts:
            _ask(facts["service"], "release", record=record)

    # --- inside the transaction, at once -------------------------------------------------------------------------------

    def request_pool(self, leases: Leases, network: str, request: PoolRequest, avoid: Sequence[IPNetwork]) -> AddressPool:
        subnet = ip_network(request.facts["subnet"])
        if (other := leases.overlapping(subnet)) is not None:
            raise Conflict(f"subnet {subnet} overlaps {other[1]}, which another network has")
        first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1
        pool = leases.add_pool(network, subnet, Span(first, last))
        gateway = ip_address(first)
        leases.lease(pool, gateway, GATEWAY)
        return AddressPool(subnet=subnet, gateway=gateway)

    def release_pool(self, leases: Leases, network: str) -> None:
        leases.remove_pools(network)

    def request_address(
        self,
        leases: Leases,
        network: str,
        subnet: IPNetwork,
        owner: str,
        preferred: IPAddress | None = None,
        *,
        facts: Mapping[str, Any] = {},
    ) -> IPInterface:
        (pool,) = leases.pools(network)
        address = ip_address(facts["address"])
        if not leases.lease(pool, address, owner):
            raise AddressTaken(f"address {address} is taken by {leases.holder(pool, address)}", address=str(address))
        return ip_interface((address, subnet.prefixlen))

    def release_address(self, leases: Leases, network: str, owner: str) -> None:
        leases.release(network, owner)


def _service(options: Mapping[str, str]) -> str:
    for name in options:
        if name != _SERVICE:
            raise ConfigError(f"IPAM driver acme has no option {name}; it has {_SERVICE}")
    if _SERVICE not in options:
        raise ConfigError(f"IPAM driver acme: say where its service is by --ipam-opt {_SERVICE}=SOCKET")
    return options[_SERVICE]


def _ask(service: str, verb: str, **arguments: str) -> Facts:
    """One question to the service; ConfigError when it refuses, KernelError when it is not there."""
    try:
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as lines:
            connection.connect(service)
            lines.write(json.dumps({"verb": verb, **arguments}) + "\n")
            lines.flush()
            answer: Facts = json.loads(lines.readline())
    except OSError as error:
        raise KernelError(f"the address service at {service} does not answer: {error.strerror}") from error
    if "error" in answer:
        raise ConfigError(f"the address service at {service} refuses: {answer['error']}")
    return answer
