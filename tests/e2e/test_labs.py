"""Every lab runs to its end, all its checks hold, and nothing is left of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netlib.config import Config

ROOT = Path(__file__).parents[2]
LABS = [pytest.param(path, id=path.stem) for path in sorted((ROOT / "labs").glob("*.py"))]


@pytest.mark.parametrize("lab", LABS)
def test_lab_holds(lab: Path, config: Config) -> None:
    folders = {"NETLIB_STATE_DIR": str(config.state_dir), "NETLIB_RUN_DIR": str(config.run_dir), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(lab)], env={**os.environ, **folders}, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert done.stdout.count("  ok   ") >= 10
