"""Question drivers that must ask the world (:class:`netlib.facts.Prepares`), and keeping what they found out.

One rule: the record is written down before anything is asked, and what was noted is an object of it, so that a crash at any
moment leaves a row that says what to give back.
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

__all__ = ["Prepared", "Question", "ask_world", "prepared_facts", "questions"]

_BY_NAME: dict[Side, Callable[[str], object]] = {"driver": driver, "ipam": ipam_driver}


class Prepared(KernelObject, frozen=True, kw_only=True, tag="prepared"):
    """What a driver took in the world for a record. It is no thing of the kernel; its removal gives that back."""

    survives_boot = True

    side: Side
    name: str  # of the driver
    record: str
    package: str = ""  # that it came with
    facts: Facts

    @cached_property
    def key(self) -> Key:
        return Key("prepared", "", f"{self.side}/{self.record}")

    def ensure(self, kernel: Kernel) -> None:
        """Nothing: it is asked for before it is written down."""

    def remove(self, kernel: Kernel) -> None:
        try:
            known = _BY_NAME[self.side](self.name)
        except NotFound as error:
            raise missing_package(f"record {self.record[:12]}", self.side, self.name, self.package) from error
        asked = ability(known, Prepares)
        if asked is not None:  # a newer driver of that name may need nothing
            asked.release(self.record, self.facts, kernel)

    def drift(self, kernel: Kernel) -> str | None:
        return None

    def commands(self) -> Iterable[str]:
        return ()


class Question(NamedTuple):
    """One driver to be asked for one record."""

    side: Side
    name: str
    driver: Prepares
    asked: Struct

    def written(self, record: str, facts: Facts) -> Prepared:
        """What is to be written down for *record* of what this driver has found out so far."""
        package = package_of(self.side, self.name)
        return Prepared(side=self.side, name=self.name, record=record, package=package, facts=facts)


_Asked = tuple[Side, str, object, Callable[[], Struct]]


def questions(*drivers: _Asked) -> list[Question]:
    """What is to be asked of those *drivers* (side, name, driver, how to make the question) that must ask the world."""
    return [
        Question(side, name, asking, make())
        for side, name, known, make in drivers
        if (asking := ability(known, Prepares)) is not None
    ]


def ask_world(engine: "Engine", kernel: Kernel, record: str, questions: Sequence[Question]) -> list[Prepared]:
    """Ask each for *record*, which is written down; answer with what is to be among its objects.

    When one fails, what the others and it had noted is given back, and its error raised; a TeardownError where that failed.
    """
    found: dict[str, Prepared] = {question.side: question.written(record, {}) for question in questions}

    def write() -> None:
        with engine.store.write() as tx:
            tx.write_objects(record, found.values())

    write()  # before anybody is asked
    try:
        for question in questions:

            def note(facts: Facts, question: Question = question) -> None:
                found[question.side] = question.written(record, facts)
                write()
                engine.tell("noted", found[question.side])

            engine.tell("ask", found[question.side])
            note(question.driver.prepare(question.asked, World(kernel, note)))
    except NetlibError as error:
        engine.undo(error, kernel, record, Plan(*found.values()))
        raise
    return list(found.values())


def prepared_facts(prepared: Iterable[Prepared]) -> dict[str, dict[str, Any]]:
    """The facts of a record, by the side that found them out."""
    return {item.side: dict(item.facts) for item in prepared}
