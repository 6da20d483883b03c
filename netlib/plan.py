"""What a plan is: an ordered tuple of small frozen objects, each one thing that the kernel (or a folder of ours) holds.

Drivers answer with plans; the core writes them down, applies them in order and removes them in reverse. A plan never
reads the kernel: what had to be known first is in the record, or is *observed* once, before the object is written down.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

from msgspec import Struct

from netlib.model import HOST, NetnsRef

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel


class Key(NamedTuple):
    """Identity of a kernel object: its other fields are attributes, and changing one is an ``ensure``."""

    kind: str
    netns: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.netns or 'host'}/{self.name}"


class KernelObject(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True, dict=True):
    """One thing the kernel holds for us: names, never ifindexes.

    Subclasses declare ``tag="…"`` (their stable name in the store), their key (a ``cached_property``, as it is asked for
    often), and the four verbs ``ensure``, ``remove``,
    ``drift`` and ``commands``. What few of them can do beyond that are abilities, the small Protocols below: a class offers one
    by its methods, and :func:`ability` finds it.

    ``batch`` names what can be changed together in one request ("firewall", "veth"): :meth:`ensure_many` and
    :meth:`remove_many` then get whole runs of such neighbours. ``observations`` names the fields that :meth:`observed` fills; a
    later holder of the key takes them over from the first one. ``survives_boot`` says that it lies on disk, and must be removed
    even when the kernel's side is gone.
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
        """Whether other records may hold this key too, so that it is changed under a lock of it."""
        return False

    def observed(self, kernel: "Kernel") -> Self:
        """Return this object with what must be known before it is written down (a prior value, an adoption)."""
        return self

    def ensure(self, kernel: "Kernel") -> None:
        """Make it so; a no-op when it is so. Raise NeedsRecreate when the living object cannot be changed into it."""
        raise NotImplementedError

    def remove(self, kernel: "Kernel") -> None:
        """Make it gone; a no-op when it is gone."""
        raise NotImplementedError

    def drift(self, kernel: "Kernel") -> str | None:
        """Say how the kernel differs from this object, or None."""
        raise NotImplementedError

    @classmethod
    def ensure_many(cls, kernel: "Kernel", run: Sequence["KernelObject"]) -> None:
        """Make a run of one ``batch`` and netns so, in order; one by one unless the room has something better."""
        for item in run:
            item.ensure(kernel)

    @classmethod
    def remove_many(cls, kernel: "Kernel", run: Sequence["KernelObject"]) -> None:
        """Make a run of one ``batch`` and netns gone, in the order given."""
        for item in run:
            item.remove(kernel)

    def commands(self) -> Iterable[str]:
        """The command lines that a person would type for it."""
        raise NotImplementedError


@runtime_checkable
class Carrier(Protocol):
    """An object with which others vanish by the kernel's own doing: a link with its addresses, a netns with its links."""

    def carries_in(self) -> tuple[str, ...]:
        """The paths of the netns in which it may carry something."""
        ...

    def carries(self, other: KernelObject) -> bool:
        """Whether *other* vanishes when this object is removed."""
        ...


@runtime_checkable
class HoldsOutside(Protocol):
    """An object that may also occupy something outside its netns, such as a slot on its parent link."""

    def holds_outside(self) -> bool:
        """Whether it does: then it is removed explicitly, before its netns is deleted."""
        ...


@runtime_checkable
class Coexists(Protocol):
    """An object that may stand beside others with its key: of another record, or of somebody else."""

    def may_meet_others(self) -> bool:
        """Whether to ask the kernel about it even when the link that carries it is still to be made: others may come first."""
        ...

    def coexisting(self, theirs: KernelObject, kernel: "Kernel") -> KernelObject | None:
        """This object adjusted to stand beside *theirs*, another record's with other attributes; None where only one can."""
        ...


@runtime_checkable
class ExplainsConflict(Protocol):
    """An object that says itself why another record's with its key stands against it."""

    def disagreement(self, theirs: KernelObject, holder: str) -> str:
        """The sentence for *theirs*, which *holder* ("network 'web'") has."""
        ...


@runtime_checkable
class Overrides(Protocol):
    """An object that changes what an object of another record set before."""

    def remaining(self, other: KernelObject) -> KernelObject | None:
        """The part of *other* that should still be found in the kernel once this object is applied; None for nothing."""
        ...


_A = TypeVar("_A")
_offers: Callable[[Any, Any], bool] = cache(issubclass)  # a connect asks fifty times; isinstance looks at each method again


def ability(item: object, kind: type[_A]) -> _A | None:
    """*item* (a kernel object, a driver), where its class offers the ability *kind* (a Protocol such as :class:`Carrier`)."""
    return cast(_A, item) if _offers(type(item), kind) else None


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
        return tuple(item.key for item in self)

    def of(self, kind: type[Any]) -> tuple[Any, ...]:
        """The objects of class *kind*, in order."""
        return tuple(item for item in self if isinstance(item, kind))

    def runs(self) -> Iterator[tuple[KernelObject, ...]]:
        """Split into runs to apply at once: neighbours of one ``batch`` and netns together, all others alone."""
        run: list[KernelObject] = []
        for item in self:
            if run and not (item.batch and item.batch == run[-1].batch and item.key.netns == run[-1].key.netns):
                yield tuple(run)
                run = []
            run.append(item)
        if run:
            yield tuple(run)


class Change(NamedTuple):
    """What turns one plan into another: ensure these in order, then remove those in reverse."""

    ensure: Plan
    remove: Plan


def plan_change(old: Plan, new: Plan) -> Change:
    """Compare by key: an object with the same key and other attributes is one ``ensure``, never a removal."""
    before = {item.key: item for item in old}
    wanted = set(new.keys)
    return Change(
        ensure=Plan(*(item for item in new if before.get(item.key) != item)),
        remove=Plan(*(item for item in old if item.key not in wanted)),
    )
