"""Remove, at DEL, objects of the container that have tags of a lost store.

The tag on the container's link, or on the link's other end, names a record. Firewall entries belong to the container when they
carry the tag of that record, or hold one of the container's addresses.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cni_plugins.node import Node
from cni_plugins.skel import Call
from netlib.errors import ObjectMissing
from netlib.firewall.backend import firewall
from netlib.kernel.addresses import addresses_of
from netlib.kernel.handle import Kernel
from netlib.kernel.links import remove_links
from netlib.kernel.netns import identity_of
from netlib.model import NetnsRef
from netlib.store.tags import store_of, tag_of, tags_of

__all__ = ["cleared_by_tag"]


@contextmanager
def cleared_by_tag(node: Node, call: Call[Any]) -> Iterator[None]:
    """After the block, which may delete the container's link, remove what a lost store's records made for the container.

    A no-op where the store is not lost. Objects of other containers stay: `netlib system reset --lost` removes them.
    """
    host = node.controller.host
    if host.lost is None:
        yield
        return
    tags = {*tags_of(host.config), host.tag}
    with Kernel() as kernel:
        records, addresses = _records_and_addresses(kernel, node, call)
        yield
        rules = firewall(kernel)
        rules.discard(
            item
            for item in rules.list_ours()
            if store_of(item.tag) in tags and (tag_of(item.tag)[1] in records or not addresses.isdisjoint(item.words))
        )
        marked = [(link.ifname, *tag_of(link.alias)) for link in kernel.rtnl().links()]
        if gone := [ifname for ifname, store, record in marked if store in tags and record in records]:
            remove_links(kernel, gone)


def _records_and_addresses(kernel: Kernel, node: Node, call: Call[Any]) -> tuple[set[str], set[str]]:
    """The records that the tags of the container's link name, and the container's addresses, as texts."""
    addresses = {str(ip.address.ip) for ip in call.prev_result.ips} if call.prev_result is not None else set()
    records: set[str] = set()
    if node.netns is None:
        return records, addresses
    netns = NetnsRef(call.netns, identity_of(node.netns))
    kernel.lend(netns, node.netns)
    with suppress(ObjectMissing):
        link = kernel.rtnl(netns).get_link(call.ifname)
        addresses |= {str(address.ip) for address in addresses_of(kernel, call.ifname, netns)}
        ends = [item for item in kernel.rtnl().links() if item.kind == "veth" and item.index == link.peer]
        records = {record for item in (link, *ends) if (record := tag_of(item.alias)[1])}
    return records, addresses
