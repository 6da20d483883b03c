"""The plugin type ``firewall``: has the host forward for the container's addresses where other programs drop forwarded packets.

The rules are nftables', whichever ``backend`` is named. An administrator's own rules belong in the chain ``user`` of the table
``inet netlib``, which runs first; no chains of iptables are made.
"""

from typing import Literal

from cni_plugins.attaching import check, finish, pending_attachment
from cni_plugins.chained import ChainedPlugin, previous
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.reference import forget_allowance
from cni_plugins.result import Result
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment, Wanted
from netlib.firewall.backend import firewall
from netlib.firewall.foreign import has_firewalld
from netlib.firewall.objects import AddressAllowance, ApartBridge, FirewallBase, ForwardedAddress
from netlib.kernel.handle import Kernel
from netlib.names import check_ifname
from netlib.plan import Plan

__all__ = ["FirewallConf", "FirewallPlugin"]

_MISSING = "missing prevResult from earlier plugin"
_BACKENDS = ("", "iptables", "nftables")


class FirewallConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The keys of firewall."""

    backend: str = ""
    iptables_admin_chain_name: str = ""
    firewalld_zone: str = ""
    ingress_policy: Literal["", "open", "same-bridge", "isolated"] = ""


class FirewallPlugin(ChainedPlugin[FirewallConf]):
    """The verbs of this type."""

    name = "firewall"
    config = FirewallConf

    def add(self, call: Call[FirewallConf]) -> Result:
        _check(call.config)
        result = previous(call, _MISSING)
        apart = _ingress_policy(call.config, result)
        with pending_attachment(self._node, call, self.name) as made:
            _report_differences(call, made.kernel)
            made.apply(lambda _: _wanted(result, apart, made))
            return finish(made, call, result)

    def check(self, call: Call[FirewallConf]) -> None:
        _check(call.config)
        previous(call, _MISSING)
        if check(self._node, call, self.name) is None:
            raise CniError(Code.DRIFT, f"firewall: container {call.container_id} is not recorded; ADD it again")

    def _remove_foreign(self, call: Call[FirewallConf]) -> None:
        addresses = {ip.address.ip for ip in call.prev_result.ips} if call.prev_result is not None else set()
        if addresses:
            with Kernel() as kernel:
                forget_allowance(kernel, addresses)

    def status(self, call: Call[FirewallConf]) -> None:
        _check(call.config)
        with Kernel() as kernel:
            firewall(kernel).listing()


def _check(config: FirewallConf) -> None:
    if config.backend == "firewalld":
        raise CniError(
            Code.INVALID_CONFIG,
            "firewall: backend firewalld is not supported",
            "leave the key out, and let firewalld know: firewall-cmd --permanent --zone=trusted --add-source=SUBNET",
        )


def _report_differences(call: Call[FirewallConf], kernel: Kernel) -> None:
    """Report on stderr which keys of the configuration are not followed, and what firewalld has to be told by a person."""
    config = call.config
    if config.backend not in _BACKENDS:
        call.stderr.append(f'firewall: backend "{config.backend}" is not known; nftables is used')
    if chain := config.iptables_admin_chain_name:
        call.stderr.append(f"firewall: chain {chain} is not used; rules of yours go into chain user of table inet netlib")
    if call.prev_result is not None and has_firewalld(kernel):
        subnets = dict.fromkeys(str(ip.address.network) for ip in call.prev_result.ips)
        sources = " ".join(f"--add-source={subnet}" for subnet in subnets)
        call.stderr.append(f"firewall: firewalld decides what it forwards; type: firewall-cmd --zone=trusted {sources}")


def _ingress_policy(config: FirewallConf, result: Result) -> tuple[ApartBridge, ...]:
    """The object for ``ingressPolicy``; its bridge is the first interface, as in the reference. None for "open"."""
    if config.ingress_policy in ("", "open"):
        return ()
    if not result.interfaces:
        raise CniError(
            Code.INVALID_CONFIG,
            f'interface needs to be set for ingress policy "{config.ingress_policy}", '
            'make sure to chain "firewall" plugin with "bridge"',
        )
    bridge = check_ifname(result.interfaces[0].name)
    return (ApartBridge(bridge=bridge, icc=config.ingress_policy == "same-bridge"),)


def _wanted(result: Result, apart: tuple[ApartBridge, ...], made: PendingAttachment) -> Wanted:
    addresses = dict.fromkeys(ip.address.ip for ip in result.ips)
    present: tuple[ApartBridge, ...] = made.shared.of(ApartBridge)
    return Wanted(
        own=Plan(*(ForwardedAddress(address=address) for address in addresses)),
        shared=Plan(FirewallBase(), AddressAllowance(), *apart),
        replaced=frozenset(item.key for item in present) - {item.key for item in apart},
    )
