"""A comparison of two commits: its arithmetic, and one side of it from the first row to the last."""

import pytest

from benchmarks.compare import ROOT, Compared, Side, interval_ranks, table


def test_the_interval_of_a_median() -> None:
    """The tables of the sign test have these ranks."""
    assert [interval_ranks(count) for count in (6, 10, 20, 100)] == [(0, 5), (1, 8), (5, 14), (39, 60)]


def test_a_row_that_is_slower_is_named() -> None:
    even = Compared("even", (1.0,) * 20, (1.02,) * 20)
    slow = Compared("slow", (1.0,) * 20, (1.3,) * 20)
    unsure = Compared("unsure", (1.0,) * 20, (1.0, 1.2) * 10)
    lines = table([even, slow, unsure], 1.1).splitlines()
    assert [line.rpartition("  ")[2] for line in lines[1:]] == ["1.020-1.020", "slower", "not shown"]


@pytest.mark.needs_cgroups
def test_every_row_gives_a_figure() -> None:
    side = Side(ROOT)
    try:
        assert len(side.rows) >= 20
        assert all(side.sample(row) > 0 for row in side.rows)
    finally:
        side.close()
