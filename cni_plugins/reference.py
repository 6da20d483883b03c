"""Remove what the reference plugins (containernetworking/plugins) made for a container that they attached.

A host may change to netlib while containers run; netlib then gets their DEL. One rule: only objects of that container are
removed. Chains that all containers share stay, as they do when the reference detaches its last container.
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
    """The name that the reference derives from *text*: a prefix, and digits of a SHA-512 up to *length*."""
    return (prefix + sha512(text.encode()).hexdigest())[:length]


def forget_ports(kernel: Kernel, network: str, container: str) -> None:
    """Remove the rules by which the reference's portmap published ports of *container*, of either backend."""
    names = {hashed(f"CNI-{kind}-", network + container, _CHAIN_LENGTH) for kind in ("DN", "SN")}
    forget_chains(kernel, "nat", names)
    for table in ("ip cni_hostport", "ip6 cni_hostport"):
        forget_rules(kernel, table, ("hostports", "hostip_hostports", "masquerading"), lambda comment: comment == container)


def forget_masquerade(kernel: Kernel, network: str, container: str, ifname: str) -> None:
    """Remove the rules by which the reference's bridge and ptp masqueraded *container*, of either backend."""
    forget_chains(kernel, "nat", {hashed("CNI-", network + container, _CHAIN_LENGTH)})
    mark = f"{hashed('', network, 16)}-{hashed('', f'{ifname}:{container}', 16)}"
    forget_rules(kernel, "inet cni_plugins_masquerade", ("masq_checks",), lambda comment: comment.startswith(mark))


def forget_allowance(kernel: Kernel, addresses: set[IPAddress]) -> None:
    """Remove the rules by which the reference's firewall accepted packets from and to *addresses*."""
    forget_accepts(kernel, "CNI-FORWARD", addresses)


def forget_bandwidth(kernel: Kernel, network: str, container: str) -> None:
    """Remove the ifb link of the reference's bandwidth; its settings of the veth pair vanish with that pair."""
    rtnl = kernel.rtnl()
    link = rtnl.find_link(hashed("bwp", network + container, _IFNAME_LENGTH))
    if link is not None and link.kind == "ifb":
        delete_link(rtnl, link)


def forget_container(kernel: Kernel, network: str, container: str, ifname: str, addresses: set[IPAddress]) -> None:
    """Remove all that the reference's plugins left on the host for *container*, of which only a lease is known."""
    forget_ports(kernel, network, container)
    forget_masquerade(kernel, network, container, ifname)
    forget_allowance(kernel, addresses)
    forget_bandwidth(kernel, network, container)
    remove_reference_check(kernel, container, ifname)
