"""A host whose netlib was that of an earlier commit, from the repository's history: its command line, netlibd and minders."""

import os
import subprocess
import sys
from pathlib import Path

from netlib.config import Config

__all__ = ["FORMER", "FormerHost", "check_out"]

FORMER = "11f308c"
_ROOT = Path(__file__).parents[2]
_PARTS = ("netlib", "drivers", "ipam", "cni_plugins", "pyproject.toml")
_SECONDS = 30


def check_out(commit: str, target: Path, repository: Path = _ROOT) -> None:
    """Put what is installed of *commit* into the folder *target*; AssertionError where the history lacks it."""
    archive = subprocess.run(["git", "-C", repository, "archive", commit, *_PARTS], capture_output=True, check=False)
    assert archive.returncode == 0, (
        f"commit {commit} is not in {repository}: this test needs the whole history, from `git clone` without --depth "
        f"or by `git fetch --unshallow` ({archive.stderr.decode().strip()})"
    )
    target.mkdir()
    subprocess.run(["tar", "-x", "-C", target], input=archive.stdout, check=True)


class FormerHost:
    """One state folder, and two netlibs that work on it: the former one and the present one.

    The former one is in the folder ``installed``. The present one is used from its own checkout, or with :meth:`exchange` from
    the same folder, where the minders and launchers of the former one find it.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.config = config
        self._installed = folder / "installed"
        self._set_aside = folder / "former"
        self._present = _ROOT
        check_out(FORMER, self._installed)

    def exchange(self) -> None:
        """Put the present netlib where the former one was, as an upgrade of a package does."""
        self._installed.rename(self._set_aside)
        self._installed.symlink_to(_ROOT)
        self._present = self._installed

    def former(self, *words: str) -> str:
        """Run a command of the former netlib; its output."""
        return self._run(self._installed, words, 0)

    def present(self, *words: str, code: int = 0) -> str:
        """Run a command of the present netlib, which ends with *code*; its output and its errors."""
        return self._run(self._present, words, code)

    def _run(self, netlib: Path, words: tuple[str, ...], code: int) -> str:
        folders = ["--state-dir", str(self.config.state_dir), "--run-dir", str(self.config.run_dir)]
        command = [sys.executable, "-P", "-m", "netlib", *folders, *words]
        environ = {**os.environ, "PYTHONPATH": str(netlib)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=_SECONDS, check=False)
        assert done.returncode == code, f"netlib {' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout + done.stderr
