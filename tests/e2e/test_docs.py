"""The examples of the README and of docs/ do what they say: each page is run from top to bottom on a fresh host.

Programs (```python) run as they are. Sessions (```console) run line by line: ``$`` begins a command, what follows is its
output, in which ``…`` stands for anything, also for lines.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlib.config import Config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


PROGRAMS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(_blocks(page, "python"), start=1)
]
SESSIONS = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if _blocks(page, "console")]


@pytest.fixture
def environment(config: Config) -> Iterator[dict[str, str]]:
    """Folders of a host of its own, ``netlib`` on the path; afterwards the host is reset."""
    variables = {
        **os.environ,
        "NETLIB_STATE_DIR": str(config.state_dir),
        "NETLIB_RUN_DIR": str(config.run_dir),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    yield variables
    subprocess.run([sys.executable, "-m", "netlib", "system", "reset", "-f"], env=variables, check=True, timeout=30)


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs(program: str, environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, env=environment)


@pytest.mark.parametrize("page", SESSIONS)
def test_session_prints_what_the_page_says(page: Path, environment: dict[str, str]) -> None:
    for block in _blocks(page, "console"):
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            result = subprocess.run(
                ["bash", "-c", command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=30,
                check=False,
            )
            assert result.returncode == 0, f"$ {command}\n{result.stdout}"
            assert _matches(expected, result.stdout), (
                f"$ {command}\n--- the page says:\n{expected}--- it printed:\n{result.stdout}"
            )


def _matches(expected: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in re.sub(r"[ \t]+", " ", expected.rstrip("\n")).split("…"))
    return re.fullmatch(pattern, re.sub(r"[ \t]+", " ", printed.rstrip("\n")), re.DOTALL) is not None
