"""What a plan is: an ordered tuple of small frozen objects, each one thing that the kernel (or a folder of ours) holds.

Drivers answer with plans; the core writes them down, applies them in order and removes them in reverse. A plan never
reads the kernel: what had to be known first is in the record, or is *observed* once, before the object is written down.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

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


class KernelObject(Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """One thing the kernel holds for us: names, never ifindexes.

    Subclasses declare ``tag="…"`` (their stable name in the store) and the five verbs below. ``batch`` names what can be
    changed together in one request ("firewall", "veth"): :meth:`ensure_many` and :meth:`remove_many` then get whole runs of
    such neighbours. ``observations`` names the fields that :meth:`observed` fills; a later holder of the key takes them over
    from the first one. ``survives_boot`` says that it lies on disk, and must be removed even when the kernel's side is gone.
    """

    batch: ClassVar[str] = ""
    observations: ClassVar[tuple[str, ...]] = ()
    survives_boot: ClassVar[bool] = False

    netns: NetnsRef = HOST

    @property
    def key(self) -> Key:
        raise NotImplementedError

    @property
    def shared(self) -> bool:
        """Whether other records may hold this key too, so that it is changed under a lock of it."""
        return False

    @property
    def reaches_out(self) -> bool:
        """Whether it holds something outside of its netns (its place on a parent): then it goes by itself before that ends."""
        return False

    def observed(self, kernel: "Kernel") -> Self:
        """Return this object with what must be known before it is written down (a prior value, an adoption)."""
        return self

    @property
    def gives_way(self) -> bool:
        """Whether something of others may stand in its place before what carries it is made, and is to stay."""
        return False

    def beside(self, theirs: "KernelObject", kernel: "Kernel") -> Self | None:
        """This object where another record holds its key otherwise (*theirs*), and both may; None where they may not."""
        return None

    def disagreement(self, theirs: "KernelObject", holder: str) -> str:
        """The sentence for a *holder* ("network 'web'") of this key with other attributes (*theirs*)."""
        return f"{self.key} is held by {holder} with other settings; use the same ones, or another name"

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

    @property
    def carries_in(self) -> tuple[str, ...]:
        """The paths of the netns in which it may carry something (see :meth:`carries`)."""
        return (self.netns.path,)

    def carries(self, other: "KernelObject") -> bool:
        """Whether *other* vanishes with this object by the kernel's own doing (an address with its link)."""
        return False

    def left_of(self, other: "KernelObject") -> "KernelObject | None":
        """What still holds of *other*, another record's, beside this object: all of it, unless this one overrides that."""
        return other

    def commands(self) -> Iterable[str]:
        """The command lines that a person would type for it."""
        raise NotImplementedError


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
