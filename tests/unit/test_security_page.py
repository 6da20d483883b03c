"""docs/security.md names a test for every promise, and there is such a test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
LEFT_OUT = "…"


def _known() -> set[str]:
    """Every test's name, and the files of tests."""
    files = [*(ROOT / "tests").rglob("test_*.py")]
    return {path.stem for path in files} | {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def _named(text: str) -> list[str]:
    """The names in *text*, some of them with parts left out: `test_a`, `test_a_…`, `…a…`."""
    return [name for name in re.findall(r"`([^`]+)`", text) if name.startswith(("test_", LEFT_OUT))]


def _is_known(name: str, known: set[str]) -> bool:
    parts = [re.escape(part) for part in name.split(LEFT_OUT)]
    return any(map(re.compile(r"\w+".join(parts)).fullmatch, known))


def test_every_test_that_the_page_names_is_there() -> None:
    named, known = _named(PAGE), _known()
    assert len(named) > 25
    assert [name for name in named if not _is_known(name, known)] == []


def test_a_name_with_parts_left_out_is_looked_for_by_the_others() -> None:
    known = {"test_a_fine_thing", "test_links_in_the_root_lead_nowhere"}
    found = [name for name in ("test_links_in_the_root_…", "…fine…", "test_a_…_thing") if _is_known(name, known)]
    assert len(found) == 3
    for name in ("test_links_in_the_root", "test_links_…_root", "…find…", "…links", "test_a_fine_thing_…"):
        assert not _is_known(name, known), name


def test_every_row_of_promises_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert len(rows) > 15
    assert [row for row in rows if not _named(row) and "make soak" not in row] == []
