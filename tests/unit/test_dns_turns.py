"""Who has the next turn: on a clock that only work moves."""

from collections.abc import Callable

import pytest

from netlib.dns import turns
from netlib.dns.turns import TURN_SECONDS, WAKE_SECONDS, Party, Turns


class World:
    """Parties with work to do, and the order in which it was done."""

    def __init__(self) -> None:
        self.now = 100.0
        self.done: list[str] = []
        self.handlers: dict[int, tuple[Callable[[int], None], Party | None]] = {}
        self.turns = Turns(self.handlers)

    def party(self, name: str, descriptors: int = 1, seconds: float = 0.0001) -> Party:
        """A party whose descriptors take so long each, and are ready again at once."""
        party = Party(name)
        for fd in range(len(self.handlers), len(self.handlers) + descriptors):

            def work(events: int, fd: int = fd) -> None:
                self.now += seconds
                self.done.append(name)
                self.turns.add(party, fd, 0)

            self.handlers[fd] = work, party
            self.turns.add(party, fd, 1)
        return party


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(turns, "monotonic", lambda: made.now)
    return made


def test_time_is_shared_by_party_and_not_by_descriptor(world: World) -> None:
    world.party("many", descriptors=100)
    world.party("one")
    for _ in range(20):
        world.turns.run()
    assert abs(world.done.count("many") - world.done.count("one")) <= TURN_SECONDS / 0.0001


def test_a_descriptors_rest_waits_until_the_others_of_its_party_had_theirs(world: World) -> None:
    handled: list[int] = []
    party = Party("party")
    for fd in range(3):

        def work(events: int, fd: int = fd) -> None:
            world.now += 0.0001
            handled.append(fd)
            world.turns.add(party, fd, 0)

        world.handlers[fd] = work, party
        world.turns.add(party, fd, 1)
    world.turns.run()
    assert handled[:5] == [0, 1, 2, 0, 1]


def test_who_has_used_least_is_served_first(world: World) -> None:
    for number in range(10):
        world.party(f"busy{number}")
    for _ in range(5):
        world.turns.run()
    world.party("newcomer")
    world.done.clear()
    world.turns.run()
    assert world.done[0] == "newcomer"


def test_new_events_are_asked_for_in_time_however_many_are_ready(world: World) -> None:
    for number in range(100):
        world.party(f"busy{number}", seconds=0.0003)
    started = world.now
    world.turns.run()
    assert world.now - started < WAKE_SECONDS + TURN_SECONDS + 0.0003
    assert world.turns  # there is more to do: nobody may wait for events


def test_every_party_has_its_turn_in_the_end(world: World) -> None:
    for number in range(100):
        world.party(f"busy{number}", seconds=0.001)
    for _ in range(100):
        world.turns.run()
    assert len(set(world.done)) == 100


def test_a_handler_is_told_when_its_partys_turn_is_over(world: World) -> None:
    seen: list[bool] = []
    party = Party("party")

    def work(events: int) -> None:
        for _ in range(2):
            seen.append(world.turns.is_over())
            world.now += TURN_SECONDS

    world.handlers[0] = work, party
    world.turns.add(party, 0, 1)
    world.turns.run()
    assert seen == [False, True]
    assert not world.turns
    assert world.turns.is_over()  # nobody's turn: one piece of work and no more


def test_a_flood_that_is_over_is_forgotten(world: World) -> None:
    flooder = world.party("flooder")
    world.turns.run()
    used = flooder.recent_use(world.now)
    assert used > 0
    assert flooder.recent_use(world.now + 10 * turns.HALF_LIFE_SECONDS) < used / 1000


def test_what_another_thread_took_back_is_passed_over(world: World) -> None:
    world.party("gone")
    world.handlers.clear()
    world.turns.run()
    assert world.done == []
    assert not world.turns
