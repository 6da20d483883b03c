"""A comparison of two commits: one side from the first row to the last, and a short one as it is called.

Its arithmetic is in ``tests/unit/test_benchmark_records.py``.
"""

from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.compare import ROOT, Side
from benchmarks.record import measured, read


@pytest.mark.needs_cgroups
def test_every_row_gives_a_figure() -> None:
    side = Side(ROOT)
    try:
        assert len(side.rows) >= 20
        assert all(side.sample(row) > 0 for row in side.rows)
    finally:
        side.close()


@pytest.mark.needs_cgroups
def test_a_comparison_is_printed_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With words behind options, as ``make bench-compare COMPARE="--pairs 1 WORD"`` has them."""
    monkeypatch.setattr(compare, "RESULTS", tmp_path / "results")
    row = "disconnect, in-process"
    assert compare.main(["HEAD", "--limit", "1000", "--pairs", "1", row]) == 0
    heading, measured_row, _, counted = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["row", "before", "after"]
    assert measured_row.startswith(row)
    assert counted == "no of 1 rows above 1000 times"
    (path,) = (tmp_path / "results").glob("*-compare-*.json")
    found = read(path)
    assert (found.commit, found.base) == (measured(keep=False).name,) * 2
    assert [each.name for each in found.rows] == [row]
