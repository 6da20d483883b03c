"""The exploration of orders itself, on verbs so small that one can count by hand."""

from collections.abc import Callable, Hashable
from functools import partial
from math import comb

import pytest

from tests.schedules import Choice, Exploration, Process, Run, Way

Work = Callable[["Counter", Process], None]


class Counter(Run):
    """A number that processes read and write, and two locks."""

    def __init__(self, works: list[Work], *, deaths: int = 0) -> None:
        self.value = 0
        self.locks: dict[str, Process] = {}
        self.deaths = deaths
        self.processes = [Process(number, partial(self.perform, number, work)) for number, work in enumerate(works)]
        for process in self.processes:
            process.start()

    def perform(self, number: int, work: Work) -> None:
        work(self, self.processes[number])

    def take_lock(self, process: Process, name: str) -> None:
        process.pause(f"take {name}", name)
        self.locks[name] = process

    def choices(self) -> list[Choice]:
        waiting = [process for process in self.processes if process.next]
        able = [Choice(process.number) for process in waiting if process.waits_for not in self.locks]
        return able + [Choice(process.number, Way.DIES) for process in waiting if self.deaths]

    def take(self, choice: Choice) -> None:
        process = self.processes[choice.process]
        if choice.way is Way.DIES:
            self.deaths -= 1
            process.die()
        else:
            process.let_on()

    @property
    def state(self) -> Hashable:
        return self.value, self.deaths, tuple(sorted(self.locks)), tuple(process.state for process in self.processes)

    def foreseen(self, choice: Choice) -> Hashable:
        return None

    def stop(self) -> None:
        for process in self.processes:
            process.die()
            process.join()


def look(times: int) -> Work:
    def work(counter: Counter, process: Process) -> None:
        for _ in range(times):
            process.pause("look")

    return work


def increase(counter: Counter, process: Process) -> None:
    process.pause("read")
    value = counter.value
    process.tell(value)
    process.pause("write")
    counter.value = value + 1


def ends(works: list[Work], *, deaths: int = 0) -> tuple[Exploration, set[int], int]:
    """The exploration, the numbers that there are at ends, and how many ends have a process that waits for ever."""
    exploration = Exploration(lambda: Counter(works, deaths=deaths))
    values, stuck = set(), 0
    for run in exploration.states():
        assert isinstance(run, Counter)
        if not run.choices():
            values.add(run.value)
            stuck += any(process.next for process in run.processes)
    return exploration, values, stuck


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (6, 7)])
def test_every_order_is_counted_and_no_state_is_met_twice(first: int, second: int) -> None:
    exploration, _, _ = ends([look(first), look(second)])
    assert exploration.orders() == comb(first + second, first)
    assert len(exploration) == (first + 1) * (second + 1)


def test_a_lost_increase_is_found() -> None:
    _, values, _ = ends([increase, increase])
    assert values == {1, 2}


def test_a_death_is_tried_before_every_step() -> None:
    exploration, values, _ = ends([increase], deaths=1)
    assert values == {0, 1}
    assert exploration.orders() == 3  # none dies, it dies before it reads, or before it writes


def test_processes_that_wait_for_each_other_are_found() -> None:
    def crossing(first: str, second: str) -> Work:
        def work(counter: Counter, process: Process) -> None:
            for name in (first, second):
                counter.take_lock(process, name)
            process.pause("let go")
            counter.locks.clear()

        return work

    _, _, stuck = ends([crossing("a", "b"), crossing("b", "a")])
    assert stuck == 1
    _, _, stuck = ends([crossing("a", "b"), crossing("a", "b")])
    assert stuck == 0


def test_an_error_of_a_process_is_kept() -> None:
    def work(counter: Counter, process: Process) -> None:
        process.pause("fail")
        raise ValueError("so be it")

    exploration = Exploration(lambda: Counter([work]))
    *_, last = exploration.states()
    assert isinstance(last, Counter)
    assert repr(last.processes[0].error) == "ValueError('so be it')"
