"""Plugin types that come after others in a list: they read the result of those, pass it on, and have their own attachment."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from cni_plugins import attaching
from cni_plugins.netconf import NetConf
from cni_plugins.node import Node
from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Result
from cni_plugins.skel import Call
from netlib.model import IPInterface

__all__ = ["ChainedPlugin", "addresses_of", "previous"]

C = TypeVar("C", bound=NetConf)


class ChainedPlugin(ABC, Generic[C]):
    """The verbs that remove, which are the same for all these types; a subclass has the others."""

    name: ClassVar[str]
    config: type[C]

    def __init__(self, node: Node) -> None:
        self._node = node

    def delete(self, call: Call[C]) -> None:
        attaching.delete(self._node, call, self.name, lambda: self._remove_foreign(call))

    def garbage_collect(self, call: Call[C]) -> None:
        attaching.collect(self._node, call, self.name)

    @abstractmethod
    def _remove_foreign(self, call: Call[C]) -> None:
        """Remove what the reference plugin of the type made for a container that no record knows."""


def previous(call: Call[Any], complaint: str = "Required prevResult missing") -> Result:
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
