"""Benchmarks as figures and files: intervals, regressions, the records of runs and their history."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import compare, history
from benchmarks.compare import Compared, summary, table
from benchmarks.measure import Row, Series, Target, interval_of, interval_ranks
from benchmarks.record import KINDS, RECORDS, Commit, RecordedRow, RecordError, measured, read, record_of, recorded, write

BASE, HEAD = "b" * 40, "a" * 40
EVEN = Compared("even", (1.0,) * 20, (1.02,) * 20)
SLOW = Compared("slow", (1.0,) * 20, (1.3,) * 20)
UNSURE = Compared("unsure", (1.0,) * 20, (1.0, 1.0, 1.2, 1.2) * 5)


# --- arithmetic --------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_median() -> None:
    """The tables of the sign test have these ranks."""
    assert [interval_ranks(count) for count in (6, 10, 20, 100)] == [(0, 5), (1, 8), (5, 14), (39, 60)]
    assert interval_of([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert Series(tuple(map(float, range(100, 0, -1))), "ms").interval == (40.0, 61.0)


def test_a_row_that_is_slower_is_named() -> None:
    lines = table([EVEN, SLOW, UNSURE], 1.1).splitlines()
    assert [line.rpartition("  ")[2] for line in lines[1:]] == ["1.020-1.020", "slower", "not shown"]
    assert summary([EVEN, SLOW, UNSURE], 1.1).splitlines() == [
        "regression: slow takes 1.30 times as long (1.30-1.30)",
        "1 of 3 rows above 1.1 times",
        "not shown, which takes more --pairs: unsure",
    ]
    assert summary([EVEN], 1.1) == "no of 1 rows above 1.1 times"


@pytest.mark.parametrize(("limit", "is_regression"), [(1.29, True), (1.3, False), (1.31, False)])
def test_an_interval_must_lie_above_the_limit(limit: float, is_regression: bool) -> None:
    assert SLOW.is_regression(limit) is is_regression


# --- records -----------------------------------------------------------------------------------------------------------


def recorded_run(folder: Path, date: str = "2026-11-29T12:00:00+0000", **more: object) -> Path:
    rows = [EVEN.recorded(BASE), SLOW.recorded(BASE)]
    found = record_of("compare", Commit(name=HEAD, changed=False), rows, base=BASE, limit=1.1, regressions=("slow",))
    return write(
        type(found)(**{**{name: getattr(found, name) for name in found.__struct_fields__}, "date": date, **more}), folder
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = recorded_run(tmp_path)
    assert path.name == "aaaaaaa-compare-bbbbbbb.json"
    found = read(path)
    assert (found.kind, found.commit, found.base, found.regressions) == ("compare", HEAD, BASE, ("slow",))
    assert found.rows[1] == RecordedRow(
        name="slow",
        unit="ms",
        count=20,
        median=1.3,
        interval=(1.3, 1.3),
        peer="bbbbbbb",
        peer_median=1.0,
        ratio=1.3,
        ratio_interval=(1.3, 1.3),
    )
    assert write(found, tmp_path) == path
    assert read(path) == found


def test_a_record_is_small_and_has_the_facts_of_its_run(tmp_path: Path) -> None:
    rows = [Compared(f"row {number}", (1.23456789,) * 100, (1.3456789,) * 100) for number in range(25)]
    found = record_of("compare", Commit(name=HEAD, changed=False), [row.recorded(BASE) for row in rows], base=BASE, limit=1.1)
    path = write(found, tmp_path)
    assert path.stat().st_size < 6000
    assert len(path.read_text().splitlines()) == 25 + 12
    assert {"date", "kernel", "python", "cpus", "commit"} <= json.loads(path.read_text()).keys()


def test_a_row_beside_a_peer_and_one_without_figures() -> None:
    ours, theirs = Series((3.0, 1.0, 2.0), "ms"), Series((4.0,), "ms")
    assert recorded(Row("run", ours, "theirs", theirs, Target(0.7, "x"))) == RecordedRow(
        name="run", unit="ms", count=3, median=2.0, interval=(1.0, 3.0), peer="theirs", peer_median=4.0, ratio=0.5
    )
    assert recorded(Row("run", ours, "theirs", None)) == RecordedRow(
        name="run", unit="ms", count=3, median=2.0, interval=(1.0, 3.0)
    )
    assert recorded(Row("run", None)) is None


@pytest.mark.parametrize("content", ["", "{}", '{"kind": 3}'])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "aaaaaaa-bench.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"aaaaaaa-bench\.json is no record of a run"):
        read(path)


def test_a_record_of_another_kind_is_named(tmp_path: Path) -> None:
    path = recorded_run(tmp_path, kind="fast")
    with pytest.raises(RecordError, match="its kind is 'fast', not bench or cni or compare"):
        read(path)


def test_every_kept_record_can_be_read() -> None:
    for path in RECORDS.glob("*"):
        found = read(path)
        assert path.name == found.file_name
        assert found.kind in KINDS
        assert not found.changed


# --- which commit is measured ------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., None]:
    """Run git in ``tmp_path/repository``, which has one commit."""
    root = tmp_path / "repository"

    def git(*words: str) -> None:
        who = ["-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, "-C", str(root), *words], check=True, capture_output=True)

    (root / "benchmarks" / "records").mkdir(parents=True)
    (root / "file").write_text("first\n")
    (root / "benchmarks" / "records" / "old").write_text("old\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return git


def test_a_commit_is_measured_whose_files_are_as_it_has_them(repository: Callable[..., None], tmp_path: Path) -> None:
    root = tmp_path / "repository"
    (root / "benchmarks" / "records" / "old").write_text("measured again\n")
    (root / "notes").write_text("mine\n")
    found = measured(keep=True, root=root)
    assert (len(found.name), found.short, found.changed) == (40, found.name[:7], False)

    (root / "file").write_text("second\n")
    assert measured(keep=False, root=root) == Commit(name=found.name, changed=True)
    with pytest.raises(RecordError, match=f"files of {found.short} were changed"):
        measured(keep=True, root=root)


def test_without_a_repository_nothing_is_kept(tmp_path: Path) -> None:
    assert measured(keep=False, root=tmp_path) == Commit(name="unknown", changed=True)
    with pytest.raises(RecordError, match="git status failed in"):
        measured(keep=True, root=tmp_path)


def test_a_comparison_with_no_commit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["no-such-commit", "--pairs", "5", "ADD"]) == 2
    assert "git rev-parse failed in" in capsys.readouterr().err


# --- history -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    monkeypatch.setattr(history, "RECORDS", folder)
    monkeypatch.setattr(history, "RESULTS", tmp_path / "results")
    return folder


def test_the_history_of_a_row(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"kernel": "6.18", "cpus": 2}
    recorded_run(records, "2026-11-30T08:00:00+0000", **facts)
    earlier = RecordedRow(name="slow", unit="ms", count=3, median=1.0, interval=(0.9, 1.1))
    recorded_run(records, "2026-11-28T08:00:00+0000", commit="c" * 40, kind="bench", rows=(earlier,), **facts)
    assert history.main(["slo"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    machine = ["2", "CPUs,", "6.18"]
    assert lines == [
        ["slow"],
        ["date", "commit", "run", "of", "median", "95", "%", "ratio", "95", "%", "to", "machine"],
        ["2026-11-28", "ccccccc", "bench", "3", "1", "ms", "0.9-1.1", *machine],
        ["2026-11-30", "aaaaaaa", "compare", "20", "1.3", "ms", "1.3-1.3", "1.300", "1.300-1.300", "bbbbbbb", *machine],
    ]
    assert history.main([]) == 0
    newest = [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(newest) == [["even", "1", "2026-11-30", "aaaaaaa"], ["slow", "2", "2026-11-30", "aaaaaaa"]]


def test_runs_that_were_not_kept_are_shown_when_asked_for(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = records.parent / "results"
    recorded_run(results, changed=True)
    (results / "20261129-120000.json").write_text("all figures")
    (results / "compare-20261129-120000.json").write_text("all figures")
    assert history.main(["slow"]) == 1
    assert "no record has a row with 'slow' in its name" in capsys.readouterr().err
    assert history.main(["slow", "--all"]) == 0
    assert "aaaaaaa+" in capsys.readouterr().out


def test_a_damaged_record_is_one_sentence(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records / "aaaaaaa-cni.json").write_text("{")
    assert history.main([]) == 2
    assert "benchmarks.history: " in capsys.readouterr().err
