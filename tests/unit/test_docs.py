"""What the documentation says is there: its links lead somewhere, its make targets exist, its Python is Python."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "findings").glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_keeps_its_word(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for code in re.findall(r"`([^`\n]+)`|^(?:\$ )?(make .*)$", text, re.MULTILINE) for name in made_by("".join(code))
    }
    assert named - targets == set()

    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        compile(block, str(page), "exec")


def made_by(command: str) -> list[str]:
    """The targets of a make command, without its variables; nothing for any other command."""
    words = command.partition("#")[0].split()
    return [word for word in words[1:2] if "=" not in word] if words[:1] == ["make"] else []
