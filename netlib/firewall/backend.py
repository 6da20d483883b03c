"""The contract of a firewall backend, which turns firewall objects into rules of the kernel and is found by name.

Only a backend's own modules name it. Objects ask :func:`firewall` for the backend of their netns.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Flag, auto
from functools import cache
from typing import ClassVar, NamedTuple, Protocol, cast

from netlib.kernel.handle import Kernel
from netlib.model import HOST, NetnsRef
from netlib.objects import load
from netlib.plan import KernelObject

__all__ = ["BACKEND", "Backend", "RuleChange", "RuleEvents", "Tagged", "backend", "firewall"]

BACKEND = "nftables"
_BACKENDS = {"nftables": "netlib.firewall.nftables:Nftables"}


class Tagged(NamedTuple):
    """Something in the kernel with a tag of ours: the tag, its description, the command that deletes it, and its parts."""

    tag: str
    what: str
    removal: str
    words: tuple[str, ...] = ()


class RuleChange(Flag):
    """The changes of rules after which a part of the ruleset is to be compared with the store."""

    NOTHING = 0
    TABLE = auto()  # something was deleted in a table of ours
    FOREIGN = auto()  # others changed chains or deleted rules that packets of ours may pass


class RuleEvents(Protocol):
    """The kernel's notifications about the rules of one netns."""

    def fileno(self) -> int:
        """The descriptor that can be read when something has happened."""
        ...

    def read(self) -> RuleChange:
        """Read the pending events and return the parts to compare; never blocks. After lost events it returns all parts."""
        ...

    def close(self) -> None:
        """Listen no longer."""
        ...


class Backend(Protocol):
    """The firewall of one netns. A backend is made for a handle and a netns, and its conversations are the handle's."""

    name: ClassVar[str]
    user_rules: ClassVar[str]  # where an administrator's own rules are

    def __init__(self, kernel: Kernel, netns: NetnsRef) -> None:
        """Make the backend; the kernel is not asked."""

    def ensure(self, groups: Mapping[str, Sequence[KernelObject]]) -> None:
        """Apply the objects of all *groups* in one transaction, all or none; entries get their group's tag as a comment.

        Raises FeatureMissing where the kernel lacks a feature for it, ObjectMissing where our table or the netns is gone.
        """
        ...

    def remove(self, objects: Sequence[KernelObject]) -> None:
        """Remove all *objects* in one transaction; one that is gone already, with its netns or not, is no error."""
        ...

    def drift(self, item: KernelObject) -> str | None:
        """Say how the kernel differs from *item*, or None."""
        ...

    @staticmethod
    def commands(item: KernelObject) -> Sequence[str]:
        """The command lines that make *item*, for a person; the kernel is not asked."""
        ...

    def allowance_commands(self, item: KernelObject) -> Sequence[str]:
        """The command lines that make *item*, an Allowance, in the chains that other programs have now; else a comment."""
        ...

    def listing(self) -> str:
        """All our rules, as the backend's own tool shows them to a person; empty where there are none."""
        ...

    def bridges(self) -> dict[str, str]:
        """The bridges that our rules are for, each with the tag of its network."""
        ...

    def refuse_other_store(self, tag: str) -> None:
        """Raise Conflict when there are rules for a bridge of another store than that of *tag*."""
        ...

    @staticmethod
    def tables() -> tuple[KernelObject, ...]:
        """The objects that hold everything else: what is lost with them is made again from the records."""
        ...

    @staticmethod
    def events() -> RuleEvents:
        """Listen to what happens to the rules of this thread's netns; FeatureMissing where the kernel has no such rules."""
        ...

    @staticmethod
    def keeping() -> AbstractContextManager[None]:
        """A block in which a long-lived process keeps its conversations with the kernel for the next operation."""
        ...

    def list_ours(self) -> tuple[Tagged, ...]:
        """Everything in the kernel that carries a tag of netlib's, in tables of ours and of others."""
        ...

    def discard(self, found: Iterable[Tagged]) -> None:
        """Delete what :meth:`list_ours` found; something that is gone by now is no error."""
        ...

    def close(self) -> None:
        """Close what the handle does not close."""
        ...


@cache
def backend(name: str = BACKEND) -> type[Backend]:
    """The class of the backend called *name*."""
    return cast(type[Backend], load(_BACKENDS[name]))


def firewall(kernel: Kernel, netns: NetnsRef = HOST) -> Backend:
    """The backend of *netns*, kept and closed by *kernel*."""
    return kernel.kept(netns, backend())
