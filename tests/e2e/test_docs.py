"""The Python examples of the README and of docs/ do what they say: each runs as a program of its own, on a fresh host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from netlib.config import Config

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL), start=1)
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: str, config: Config) -> None:
    folders = {"NETLIB_STATE_DIR": str(config.state_dir), "NETLIB_RUN_DIR": str(config.run_dir), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", example], check=True, timeout=30, env={**os.environ, **folders})
