"""docs/security.md names a test for every promise, and there is such a test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def _known() -> set[str]:
    """Every test's name, and the files of tests."""
    files = [*(ROOT / "tests").rglob("test_*.py")]
    return {path.stem for path in files} | {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+?_?)(?:_…)?`", PAGE)) - {"test_links_in_the_root"}
    assert len(named) > 15
    assert sorted(named - _known()) == []


def test_every_row_of_promises_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert len(rows) > 15
    assert [row for row in rows if "test_" not in row and "…`" not in row and "make soak" not in row] == []
