"""Folders that go while somebody may still write into them."""

import shutil
from pathlib import Path

__all__ = ["take_away"]


def take_away(folder: Path) -> None:
    """Delete *folder* with all that is in it, and what netlibd, not ended yet, puts there meanwhile."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
