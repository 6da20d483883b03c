"""A kernel in memory: a dict that kernel objects of a few kinds change, and the world that it is in.

To look at a thing and to change it are steps of whoever does it (:mod:`tests.schedules`).
"""

import sqlite3
import threading
from collections.abc import Collection, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from msgspec.structs import replace

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.model import NetnsRef, Phase
from netlib.plan import KernelObject, Key
from tests.schedules import Process

__all__ = [
    "NETNS_DIR",
    "NOWHERE",
    "ModelKernel",
    "ModelLink",
    "ModelNetns",
    "ModelSwitch",
    "ModelThing",
    "Thing",
    "World",
    "here",
]

NOWHERE = Path("/nonexistent/netlib-model")  # no file is made
NETNS_DIR = NOWHERE / "netns"
_TABLES = ("record", "object", "pool", "free_range", "lease", "port", "meta")
_OFF, _ON = "0", "1"


class Thing(NamedTuple):
    """What the kernel has at a key."""

    value: str = _ON
    carriers: tuple[str, ...] = ()  # keys of things with each of which it vanishes


class World:
    """Store, kernel and locks of one host. Handles to the kernel reach the one that was made last."""

    last: ClassVar["World"]

    def __init__(
        self,
        image: bytes = b"",
        kernel: Mapping[str, Thing] = {},
        outside: Collection[str] = (),
        *,
        boot: str = "boot1",
    ) -> None:
        """Begin with a store (:meth:`image`), a kernel and what drivers hold *outside* the host, or with nothing."""
        World.last = self
        self.boot = boot
        self.kernel = dict(kernel)
        self.outside = set(outside)  # ids of records
        self.locks: dict[str, Process | None] = {}
        self.database = _Database(":memory:", isolation_level=None, check_same_thread=False)
        if image:
            self.database.deserialize(image)
        self.database.execute("PRAGMA foreign_keys=ON")
        self._ids: dict[int, int] = {}  # how many each process has used

    def image(self) -> bytes:
        """The store as it is now."""
        return self.database.serialize()

    def close(self) -> None:
        """Give the store's memory back."""
        self.database.close()

    def rows(self, query: str) -> list[Any]:
        """What a statement finds in the store."""
        return sqlite3.Connection.execute(self.database, query).fetchall()

    def phases(self) -> dict[str, Phase]:
        """The phase of each record, by id."""
        return {record: Phase(phase) for record, phase in self.rows("SELECT id, phase FROM record")}

    @property
    def state(self) -> Hashable:
        """All that there is but for the locks."""
        rows = tuple(tuple(self.rows(f"SELECT * FROM {table}")) for table in _TABLES)
        return rows, tuple(sorted(self.kernel.items())), tuple(sorted(self.outside))

    def pause(self, step: str, lock: str = "") -> None:
        """Stand still before a step, in a process."""
        assert not self.database.in_transaction, f"{step} inside a transaction"
        if (process := here()) is not None:
            process.pause(step, lock)

    def tell(self, what: Hashable) -> None:
        """Note what a process gets to know."""
        if (process := here()) is not None:
            process.tell(what)

    def new_id(self) -> str:
        """An id that is the same in every order of steps."""
        process = here()
        number = process.number if process is not None else 0
        self._ids[number] = self._ids.get(number, 0) + 1
        return f"{number:02x}{self._ids[number]:06x}".ljust(64, "0")


def here() -> Process | None:
    """The process that asks; None for the test itself."""
    thread = threading.current_thread()
    return thread if isinstance(thread, Process) else None


class _Database(sqlite3.Connection):
    """A connection that notes what a process gets to know by it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.row_factory = _noted

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        World.last.tell("statement")
        return super().execute(sql, parameters)


def _noted(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
    World.last.tell(row)
    return row


class _Modelled(KernelObject, frozen=True, kw_only=True):
    """A thing in the kernel; to look at it and to change it are steps."""

    kind: ClassVar[str]

    name: str
    on: tuple[str, ...] = ()  # links of the host, with each of which it vanishes

    @cached_property
    def key(self) -> Key:
        return Key(self.kind, self.netns.path, self.name)

    @property
    def thing(self) -> Thing:
        """As it is in the kernel."""
        carriers = [f"link/host/{link}" for link in self.on]
        return Thing(carriers=(*carriers, f"netns/host/{self.netns.path}") if self.netns.path else (*carriers,))

    def step(self, kernel: Kernel, verb: str) -> dict[str, Thing]:
        """Stand still before *verb*, and answer with what there is then."""
        assert isinstance(kernel, ModelKernel)
        things = kernel.world.kernel
        kernel.world.pause(f"{verb} {self.key}")
        kernel.world.tell(tuple(key for key in (str(self.key), *self.thing.carriers) if key in things))
        if (process := here()) is not None and process.is_failing:
            process.tell("failure")
            raise KernelError(f"{self.key}: a failure is tried here")
        return things

    def ensure(self, kernel: Kernel) -> None:
        things = self.step(kernel, "ensure")
        for carrier in self.thing.carriers:
            if carrier not in things:
                raise ObjectMissing(f"{self.key} cannot be made: {carrier} is missing")
        things[str(self.key)] = self.thing

    def remove(self, kernel: Kernel) -> None:
        things = self.step(kernel, "remove")
        for key in [key for key, thing in things.items() if str(self.key) in (key, *thing.carriers)]:
            del things[key]

    def drift(self, kernel: Kernel) -> str | None:
        return None if str(self.key) in self.step(kernel, "look at") else f"{self.key} is missing"


class ModelThing(_Modelled, frozen=True, kw_only=True, tag="model_thing"):
    """An address, a route, a port of a bridge: one record's own."""

    kind = "thing"


class ModelLink(_Modelled, frozen=True, kw_only=True, tag="model_link"):
    """A link of the host, with which goes what is on it; a common one may be that of several records."""

    kind = "link"

    is_common: bool = False

    @property
    def shared(self) -> bool:
        return self.is_common

    def carries_in(self) -> tuple[str, ...]:
        return ("", str(NETNS_DIR / "box"), str(NETNS_DIR / "two"))

    def carries(self, other: KernelObject) -> bool:
        return isinstance(other, _Modelled) and self.name in other.on


class ModelNetns(_Modelled, frozen=True, kw_only=True, tag="model_netns"):
    """A sandbox's netns, with which goes what is in it."""

    kind = "netns"

    def carries_in(self) -> tuple[str, ...]:
        return (self.name,)

    def carries(self, other: KernelObject) -> bool:
        return other.netns.path == self.name


class ModelSwitch(_Modelled, frozen=True, kw_only=True, tag="model_switch"):
    """A sysctl of the host: on while somebody holds it, and then again what it was before."""

    kind = "switch"
    observations = ("before",)

    before: str = ""

    @property
    def shared(self) -> bool:
        return True

    def observed(self, kernel: Kernel) -> "ModelSwitch":
        assert isinstance(kernel, ModelKernel)
        found = kernel.world.kernel.get(str(self.key), Thing(_OFF))
        kernel.world.tell(found)
        return replace(self, before=found.value)

    def remove(self, kernel: Kernel) -> None:
        things = self.step(kernel, "remove")
        if self.before == _OFF:
            things.pop(str(self.key), None)
        else:
            things[str(self.key)] = Thing(self.before)


class ModelKernel(Kernel):
    """A handle to the kernel of the present world."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.world = World.last

    def netns_fd(self, netns: NetnsRef) -> int:
        place = f"netns/host/{netns.path}"
        self.world.pause(f"open {place}")
        self.world.tell(place in self.world.kernel)
        if place not in self.world.kernel:
            raise ObjectMissing(f"{place} is missing")
        return -1

    def new_netns(self, path: str) -> NetnsRef:
        return NetnsRef(path, f"{self.world.boot}:{path}")
