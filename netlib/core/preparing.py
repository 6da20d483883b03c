"""Asking drivers for facts (:class:`netlib.facts.Prepares`) before a record is made, and storing the facts as its objects.

One rule: the store has the record before a driver is asked, and has each fact as soon as the driver notes it. A crash at any
moment leaves a record with objects that say what to release.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from netlib.errors import NetlibError, NotFound
from netlib.facts import Facts, Prepares, World
from netlib.kernel.handle import Kernel
from netlib.plan import KernelObject, Key, Plan, ability
from netlib.registry import Side, driver, ipam_driver, missing_package, package_of

if TYPE_CHECKING:
    from netlib.core.engine import Engine

__all__ = ["DriverQuestion", "Prepared", "ask_world", "prepared_facts", "questions"]

_BY_NAME: dict[Side, Callable[[str], object]] = {"driver": driver, "ipam": ipam_driver}


class Prepared(KernelObject, frozen=True, kw_only=True, tag="prepared"):
    """The facts that a driver's ``prepare`` noted for a record (a DHCP lease, say). Its removal has the driver release them."""

    survives_boot = True

    side: Side
    name: str  # of the driver
    record: str  # its id
    package: str = ""  # the distribution package of the driver; empty for a built-in one
    facts: Facts

    @cached_property
    def key(self) -> Key:
        return Key("prepared", "", f"{self.side}/{self.record}")

    def ensure(self, kernel: Kernel) -> None:
        """Do nothing: the driver was asked before this object was written."""

    def remove(self, kernel: Kernel) -> None:
        try:
            known = _BY_NAME[self.side](self.name)
        except NotFound as error:
            raise missing_package(f"record {self.record[:12]}", self.side, self.name, self.package) from error
        asked = ability(known, Prepares)
        if asked is not None:  # a newer version of the driver may have nothing to release
            asked.release(self.record, self.facts, kernel)

    def drift(self, kernel: Kernel) -> str | None:
        return None

    def commands(self) -> Iterable[str]:
        return ()


class DriverQuestion(NamedTuple):
    """One driver with the question to ask it, for one record."""

    side: Side
    name: str
    driver: Prepares
    asked: Struct

    def prepared(self, record: str, facts: Facts) -> Prepared:
        """The object of *record* (an id) with the *facts* that this driver has noted so far."""
        package = package_of(self.side, self.name)
        return Prepared(side=self.side, name=self.name, record=record, package=package, facts=facts)


_Asked = tuple[Side, str, object, Callable[[], Struct]]


def questions(*drivers: _Asked) -> list[DriverQuestion]:
    """Make the questions for those *drivers* (side, name, driver, function that makes the question) that have ``prepare``."""
    return [
        DriverQuestion(side, name, asking, make())
        for side, name, known, make in drivers
        if (asking := ability(known, Prepares)) is not None
    ]


def ask_world(engine: "Engine", kernel: Kernel, record: str, questions: Sequence[DriverQuestion]) -> list[Prepared]:
    """Ask the drivers of *questions* for *record* (an id), which is in the store; return the objects with their facts.

    When a driver fails, the facts that all drivers noted are released, and its error is raised; TeardownError where the release
    fails too.
    """
    found: dict[str, Prepared] = {question.side: question.prepared(record, {}) for question in questions}

    def write() -> None:
        with engine.store.write() as tx:
            tx.write_objects(record, found.values())

    write()  # first: after a crash before the first note, the driver is asked to release, with empty facts
    try:
        for question in questions:

            def note(facts: Facts, question: DriverQuestion = question) -> None:
                found[question.side] = question.prepared(record, facts)
                write()
                engine.tell("noted", [found[question.side]])

            engine.tell("ask", [found[question.side]])
            note(question.driver.prepare(question.asked, World(kernel, note)))
    except NetlibError as error:
        engine.undo(error, kernel, record, Plan(*found.values()))
        raise
    return list(found.values())


def prepared_facts(prepared: Iterable[Prepared]) -> dict[str, dict[str, Any]]:
    """The facts in *prepared*, by side (driver, IPAM)."""
    return {item.side: dict(item.facts) for item in prepared}
