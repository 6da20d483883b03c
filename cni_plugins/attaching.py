"""The attachment of a plugin type: how it is made, found, compared with the kernel, and removed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from cni_plugins.lost_store import cleared_by_tag
from cni_plugins.node import Node
from cni_plugins.protocol import NEWEST, CniError, Code, at_least
from cni_plugins.result import Result, parse_result, render_result
from cni_plugins.skel import Call
from netlib.core.attachments import Attachments
from netlib.core.pending_attachment import AttachmentKey, PendingAttachment
from netlib.errors import KernelError
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import identity_of
from netlib.model import CniAttachment, CniNetwork, NetnsRef
from netlib.plan import KernelObject

__all__ = [
    "attachments_of",
    "check",
    "collect",
    "delete",
    "finish",
    "key_of",
    "lent_kernel",
    "netns_of",
    "pending_attachment",
    "recorded_result",
]


def attachments_of(node: Node) -> Attachments:
    """The attachments on the host *node*."""
    return Attachments(node.controller)


def key_of(call: Call[Any], plugin: str) -> AttachmentKey:
    """The key of *plugin*'s attachment that *call* is about."""
    return AttachmentKey(call.network, call.container_id, call.ifname, plugin)


def netns_of(node: Node, call: Call[Any]) -> NetnsRef:
    """The netns of *call*, with its identity; CniError (code 8) when CNI_NETNS leads to none."""
    if node.netns is None:
        raise CniError(Code.INVALID_NETNS, f"failed to open netns {call.netns!r}", "CNI_NETNS leads to no network namespace")
    try:
        return NetnsRef(call.netns, identity_of(node.netns))
    except KernelError as error:
        raise CniError(Code.INVALID_NETNS, f"failed to open netns {call.netns!r}", str(error)) from None


@contextmanager
def pending_attachment(node: Node, call: Call[Any], plugin: str) -> Iterator[PendingAttachment]:
    """Make *plugin*'s attachment in the block, which ends with :func:`finish`; an error in the block undoes the attachment."""
    netns = netns_of(node, call)
    key = key_of(call, plugin)
    with node.controller.undoing_on_scarcity(), attachments_of(node).pending(key, netns, node.netns) as made:
        node.check_awaited()
        yield made


def finish(made: PendingAttachment, call: Call[Any], result: Result) -> Result:
    """Record *result* as the answer of ADD, and return it; CniError where the CNI version of *call* cannot express it."""
    if not at_least(call.version, "0.3.0"):  # since 0.3.0 every result can be expressed
        render_result(result, call.version)
    made.finish(render_result(result, NEWEST))
    return result


def delete(node: Node, call: Call[Any], plugin: str, without_record: Callable[[], None]) -> None:
    """Remove *plugin*'s attachment; without a record of it, call *without_record* to remove what the configuration describes.

    *without_record* does not get the netns where another attachment has the interface there by now.
    """
    attachments = attachments_of(node)
    key = key_of(call, plugin)
    if attachments.delete(key) is None:
        if node.netns is not None and _is_of_another(attachments, key, netns_of(node, call)):
            node.netns = None
        with cleared_by_tag(node, call):
            without_record()


def _is_of_another(attachments: Attachments, key: AttachmentKey, netns: NetnsRef) -> bool:
    """Whether another container or another network has the interface that *key* names in *netns*."""
    with attachments.store.read() as tx:
        there = [row.value for row in tx.attachments_in(netns.path) if row.value.netns.identity == netns.identity]
        network = tx.find_named(CniNetwork, key.network)
    mine = (network.id if network is not None else "", key.container)
    return any(item.ifname == key.ifname and (item.network, item.container) != mine for item in there)


def check(node: Node, call: Call[Any], plugin: str, configured: Iterable[KernelObject] = ()) -> CniAttachment | None:
    """Compare *plugin*'s attachment with the kernel; CniError (code DRIFT) says what differs.

    Returns None where the attachment has no record; the objects *configured* are compared then.
    """
    attachments = attachments_of(node)
    found = attachments.find(key_of(call, plugin))
    if found is not None:
        drifts = [*_result_drift(call, recorded_result(found)), *attachments.drift(found)]
    else:
        with lent_kernel(node, call) as kernel:
            drifts = [(str(item.key), difference) for item in configured if (difference := item.drift(kernel))]
    if drifts:
        differences = [f"{key}: {difference}" for key, difference in drifts]
        raise CniError(Code.DRIFT, f"{plugin}: {differences[0]}", "; ".join(differences[1:]))
    return found


def _result_drift(call: Call[Any], answered: Result) -> Iterator[tuple[str, str]]:
    """Say how prevResult differs from the result that ADD *answered*, in what no later plugin changes: netns and addresses."""
    previous = call.prev_result
    assert previous is not None
    mine = [
        number for number, interface in enumerate(previous.interfaces) if interface.name == call.ifname and interface.sandbox
    ]
    for number in mine:
        if (sandbox := previous.interfaces[number].sandbox) != call.netns:
            yield "prevResult", f"Sandbox in prevResult {sandbox} doesn't match configured netns: {call.netns}"
    known = {ip.address for ip in answered.ips}
    for ip in previous.ips:
        if ip.interface in mine and ip.address not in known:
            yield "prevResult", f"{ip.address} is not among the addresses of the attachment"


@contextmanager
def lent_kernel(node: Node, call: Call[Any]) -> Iterator[Kernel]:
    """A kernel handle that reaches the netns of *call* by the descriptor which the caller lent."""
    with Kernel() as kernel:
        if node.netns is not None:
            kernel.lend(netns_of(node, call), node.netns)
        yield kernel


def recorded_result(attachment: CniAttachment) -> Result:
    """The result that ADD answered."""
    return parse_result(attachment.result, NEWEST, "recorded result")


def collect(node: Node, call: Call[Any], plugin: str) -> None:
    """Remove *plugin*'s attachments in the network of *call*, except those that the GC lists as valid."""
    valid = {(attachment.container_id, attachment.ifname) for attachment in call.valid_attachments}
    attachments_of(node).collect(call.network, plugin, valid)
