"""How a plugin type that comes after others in a list reads their result, which it passes on."""

from typing import Any

from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Result
from cni_plugins.skel import Call
from netlib.model import IPInterface

__all__ = ["addresses_of", "previous"]


def previous(call: Call[Any], complaint: str) -> Result:
    """The result of the plugins before; CniError (code 7) with *complaint*, the reference's words, where there are none."""
    if call.prev_result is None:
        raise CniError(Code.INVALID_CONFIG, complaint, "put it behind a plugin that makes an interface, in a list of plugins")
    return call.prev_result


def addresses_of(call: Call[Any], result: Result) -> tuple[IPInterface, ...]:
    """The container's addresses on CNI_IFNAME, the first of each family, as the reference's portmap picks them.

    An address counts as well if the result does not say on which interface it is.
    """
    found: dict[int, IPInterface] = {}
    for ip in result.ips:
        link = result.interface_of(ip)
        if link is None or (link.sandbox and link.name == call.ifname):
            found.setdefault(ip.address.version, ip.address)
    return tuple(found.values())
