"""What the reference plugins (containernetworking/plugins) left for a container that they attached, and its removal.

A host may change over with containers running, and their DEL then comes to us. One rule: only what was that container's goes;
chains that all containers share stay, as they do when the reference detaches its last one.
"""

from hashlib import sha512

from netlib.firewall.leftovers import forget_accepts, forget_chains, forget_rules
from netlib.firewall.spoofing import remove_reference_check
from netlib.kernel.handle import Kernel
from netlib.kernel.links import delete_link
from netlib.model import IPAddress

__all__ = ["forget_allowance", "forget_bandwidth", "forget_container", "forget_masquerade", "forget_ports", "hashed"]

_CHAIN_LENGTH = 28
_IFNAME_LENGTH = 15


def hashed(prefix: str, text: str, length: int) -> str:
    """The name that the reference makes of *text*: a prefix, filled up with the digits of a SHA-512."""
    return (prefix + sha512(text.encode()).hexdigest())[:length]


def forget_ports(kernel: Kernel, network: str, container: str) -> None:
    """Remove what its portmap has published for *container*, by either backend."""
    names = {hashed(f"CNI-{kind}-", network + container, _CHAIN_LENGTH) for kind in ("DN", "SN")}
    forget_chains(kernel, "nat", names)
    for table in ("ip cni_hostport", "ip6 cni_hostport"):
        forget_rules(kernel, table, ("hostports", "hostip_hostports", "masquerading"), lambda comment: comment == container)


def forget_masquerade(kernel: Kernel, network: str, container: str, ifname: str) -> None:
    """Remove what its bridge and ptp have masqueraded of *container*, by either backend."""
    forget_chains(kernel, "nat", {hashed("CNI-", network + container, _CHAIN_LENGTH)})
    mark = f"{hashed('', network, 16)}-{hashed('', f'{ifname}:{container}', 16)}"
    forget_rules(kernel, "inet cni_plugins_masquerade", ("masq_checks",), lambda comment: comment.startswith(mark))


def forget_allowance(kernel: Kernel, addresses: set[IPAddress]) -> None:
    """Remove what its firewall has accepted of and for *addresses*."""
    forget_accepts(kernel, "CNI-FORWARD", addresses)


def forget_bandwidth(kernel: Kernel, network: str, container: str) -> None:
    """Remove the ifb link of its bandwidth; what it has set on the veth pair goes with that."""
    rtnl = kernel.rtnl()
    link = rtnl.find_link(hashed("bwp", network + container, _IFNAME_LENGTH))
    if link is not None and link.kind == "ifb":
        delete_link(rtnl, link)


def forget_container(kernel: Kernel, network: str, container: str, ifname: str, addresses: set[IPAddress]) -> None:
    """Remove all that its plugins have left on the host for *container*, of which only a lease tells any more."""
    forget_ports(kernel, network, container)
    forget_masquerade(kernel, network, container, ifname)
    forget_allowance(kernel, addresses)
    forget_bandwidth(kernel, network, container)
    remove_reference_check(kernel, container, ifname)
