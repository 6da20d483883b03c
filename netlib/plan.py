"""Plans: ordered tuples of small frozen objects, each of which stands for one thing in the kernel or a file of ours.

Drivers return plans; the core records them, applies them in order and removes them in reverse. Planning never reads the kernel:
what has to be known before is in the record, or is *observed* once, before the object is recorded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

from msgspec import Struct

from netlib.model import HOST, NetnsRef

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel


BATCH_ORDER = (
    "dhcp",  # a lease is released by a packet, which needs the link and the rules that let it pass
    "firewall",  # a port closed early harms nobody; one still open may lead to the next owner of an address
    "outward",  # links on a parent, or moved from elsewhere: before pairs, one end of which may be the parent
    "port sources",  # they name a pair's host end: while that exists, nobody else's link can have the name
    "veth",
)
"""The order in which a removal goes through batches; what has no batch is removed after all of them."""


def removal_rank(batch: str) -> tuple[int, str]:
    """Return the sort key of a batch in a removal: its place in BATCH_ORDER, behind it by name for a third party's batch."""
    return (BATCH_ORDER.index(batch) if batch in BATCH_ORDER else len(BATCH_ORDER), batch)


class Key(NamedTuple):
    """The identity of a kernel object. Its other fields are attributes, and a change of one is an ``ensure``."""

    kind: str
    netns: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.netns or 'host'}/{self.name}"


class KernelObject(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True, dict=True):
    """One thing in the kernel that we made or changed, described by names, never by ifindexes.

    A subclass declares ``tag="…"`` (its stable name in the store), its key (a ``cached_property``, as it is asked for often),
    and the four verbs ``ensure``, ``remove``, ``drift`` and ``commands``. Some have further abilities, the small Protocols
    below: a class offers an ability by having its methods, and :func:`ability` finds it.

    Objects of the same ``batch`` ("firewall", "veth") can be changed in one request: :meth:`ensure_many` gets runs of them that
    are neighbours in a plan, :meth:`remove_many` all of a removal, in the order of BATCH_ORDER. ``observations`` names the
    fields that :meth:`observed` fills; a later holder of the key takes their values over from the first one. An object that
    ``survives_boot`` is on disk and must be removed even when the kernel's objects are gone.
    """

    batch: ClassVar[str] = ""
    observations: ClassVar[tuple[str, ...]] = ()
    survives_boot: ClassVar[bool] = False

    netns: NetnsRef = HOST

    @cached_property
    def key(self) -> Key:
        raise NotImplementedError

    @property
    def shared(self) -> bool:
        """Whether other records may hold this key too; the object is then changed under a lock of the key."""
        return False

    def observed(self, kernel: "Kernel") -> Self:
        """Return this object with what must be known before it is recorded: a sysctl's prior value, whether a link existed."""
        return self

    def ensure(self, kernel: "Kernel") -> None:
        """Make or change the object in the kernel; a no-op when it is so. NeedsRecreate when it cannot be changed in place."""
        raise NotImplementedError

    def remove(self, kernel: "Kernel") -> None:
        """Remove this object from the kernel; a no-op when it is gone."""
        raise NotImplementedError

    def drift(self, kernel: "Kernel") -> str | None:
        """Return how the kernel differs from this object, or None."""
        raise NotImplementedError

    @classmethod
    def ensure_many(cls, kernel: "Kernel", run: Sequence["KernelObject"]) -> None:
        """Ensure objects of one ``batch`` and netns, in order; one by one unless a subclass can do it in one request."""
        for item in run:
            item.ensure(kernel)

    @classmethod
    def remove_many(cls, kernel: "Kernel", run: Sequence["KernelObject"]) -> None:
        """Remove objects of one ``batch`` and netns, in the order given."""
        for item in run:
            item.remove(kernel)

    def commands(self) -> Iterable[str]:
        """Return the shell commands by which a person would make this object."""
        raise NotImplementedError


@runtime_checkable
class Carrier(Protocol):
    """An object with which the kernel removes others: a link with its addresses, a netns with its links."""

    def carries_in(self) -> tuple[str, ...]:
        """Return the paths of the netns in which the removal of this object may remove others."""
        ...

    def carries(self, other: KernelObject) -> bool:
        """Whether the kernel removes *other* when this object is removed."""
        ...


@runtime_checkable
class HoldsOutside(Protocol):
    """An object that may also occupy something outside its netns, such as a slot on its parent link."""

    def holds_outside(self) -> bool:
        """Whether this object occupies something outside; it is then removed explicitly, before its netns is deleted."""
        ...


@runtime_checkable
class Coexists(Protocol):
    """An object that can exist together with one of the same key that another record or another program has made."""

    def may_meet_others(self) -> bool:
        """Whether the kernel must be asked about this object even when the link that carries it is still to be made.

        Somebody else's object may be there, and is kept.
        """
        ...

    def coexisting(self, theirs: KernelObject, kernel: "Kernel") -> KernelObject | None:
        """Return this object adjusted to exist beside *theirs*, another record's with other attributes; None for a conflict."""
        ...


@runtime_checkable
class ExplainsConflict(Protocol):
    """An object with its own message for a conflict with another record's object of the same key."""

    def disagreement(self, theirs: KernelObject, holder: str) -> str:
        """Return the message for a conflict with *theirs*, which *holder* ("network 'web'") has."""
        ...


@runtime_checkable
class ExplainsByKernel(Protocol):
    """An object whose commands depend on what other programs have in the kernel now."""

    def commands_here(self, kernel: "Kernel") -> Iterable[str]:
        """Return the shell commands by which a person would make this object beside what is in the kernel."""
        ...


@runtime_checkable
class Overrides(Protocol):
    """An object that changes a setting which an object of another record has set before."""

    def remaining(self, other: KernelObject) -> KernelObject | None:
        """Return the part of *other* that should still be in the kernel once this object is applied; None for nothing."""
        ...


_A = TypeVar("_A")
# Cached, because one connect asks fifty times, and isinstance compares all methods of the Protocol each time.
_offers: Callable[[Any, Any], bool] = cache(issubclass)


def ability(item: Any, kind: type[_A]) -> _A | None:
    """Return *item*, a kernel object or a driver, if its class has the ability *kind* (such as :class:`Carrier`), else None."""
    found: _A | None = item if _offers(type(item), kind) else None
    return found


class Plan(tuple[KernelObject, ...]):
    """An ordered tuple of kernel objects with unique keys; ``Plan(a, b) + Plan(c)`` is a plan."""

    __slots__ = ()

    def __new__(cls, *objects: KernelObject) -> Self:
        seen: set[Key] = set()
        for item in objects:
            if item.key in seen:
                raise ValueError(f"two objects of one plan have the key {item.key}")
            seen.add(item.key)
        return super().__new__(cls, objects)

    def __add__(self, other: Iterable[KernelObject]) -> "Plan":  # type: ignore[override]
        return Plan(*self, *other)

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple([item.key for item in self])

    def of(self, kind: type[Any]) -> tuple[Any, ...]:
        """Return the objects of class *kind*, in order."""
        return tuple(item for item in self if isinstance(item, kind))

    def runs(self) -> Iterator[tuple[KernelObject, ...]]:
        """Yield the objects in groups that are applied together: neighbours of one ``batch`` and netns, all others alone."""
        run: list[KernelObject] = []
        for item in self:
            if run and not (item.batch and item.batch == run[-1].batch and item.key.netns == run[-1].key.netns):
                yield tuple(run)
                run = []
            run.append(item)
        if run:
            yield tuple(run)


class Change(NamedTuple):
    """The steps from one plan to another: ensure the first objects in order, then remove the second ones in reverse."""

    ensure: Plan
    remove: Plan


def plan_change(old: Plan, new: Plan) -> Change:
    """Compare two plans by keys: an object with the same key and other attributes is ensured, never removed."""
    before = {item.key: item for item in old}
    wanted = set(new.keys)
    return Change(
        ensure=Plan(*[item for item in new if before.get(item.key) != item]),
        remove=Plan(*[item for item in old if item.key not in wanted]),
    )
