"""Links of the host that macvlan and ipvlan networks sit on."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Self

from netlib.errors import ConfigError, ObjectMissing
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel


class ParentLink(KernelObject, frozen=True, kw_only=True, tag="parent_link"):
    """A link that networks use as the parent of theirs; somebody else made it, or (*made*) an object before this one.

    The link itself is not changed. Records share it only with the same *use* ("macvlan", "ipvlan l2 bridge"), for the kernel
    allows one kind and one mode of such links on a parent.
    """

    ifname: str
    use: str
    made: bool = False

    @cached_property
    def key(self) -> Key:
        return Key("parent", self.netns.path, self.ifname)

    @property
    def shared(self) -> bool:
        return True

    def disagreement(self, theirs: KernelObject, holder: str) -> str:
        use = theirs.use if isinstance(theirs, ParentLink) else "something else"
        return f"parent {self.ifname} serves {holder} for {use}, so it cannot serve for {self.use}; choose another parent"

    def observed(self, kernel: "Kernel") -> Self:
        """Raise ConfigError when the link is missing."""
        if not self.made and kernel.rtnl(self.netns).find_link(self.ifname) is None:
            raise ConfigError(f"parent {self.ifname}: there is no such link in {self.netns.label}; `ip link` lists them")
        return self

    def ensure(self, kernel: "Kernel") -> None:
        kernel.rtnl(self.netns).index(self.ifname)

    def remove(self, kernel: "Kernel") -> None:
        """Do nothing: the link is not ours."""

    def drift(self, kernel: "Kernel") -> str | None:
        try:
            return None if kernel.rtnl(self.netns).find_link(self.ifname) else f"parent {self.ifname} is missing"
        except ObjectMissing as error:
            return str(error)

    def commands(self) -> Iterable[str]:
        return ()
