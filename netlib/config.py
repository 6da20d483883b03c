"""Where netlib keeps its things: folders from arguments or ``NETLIB_*`` variables, else the defaults.

Several simulated hosts share one machine by giving each folders of its own.
"""

import os
from pathlib import Path
from typing import NamedTuple

from netlib.errors import ConfigError

DEFAULT_STATE_DIR = "/var/lib/netlib"
DEFAULT_RUN_DIR = "/run/netlib"


def whole_path(path: str) -> str:
    """An absolute path of what is meant from the current folder; ConfigError when that folder is gone."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path!r} is meant from the current folder, which was removed; change to another one") from error


class Config(NamedTuple):
    """Folders of one simulated or real host; no struct, for clients import it, and msgspec would be most of their time."""

    state_dir: Path = Path(DEFAULT_STATE_DIR)
    run_dir: Path = Path(DEFAULT_RUN_DIR)

    @classmethod
    def from_environment(cls, *, state_dir: str | None = None, run_dir: str | None = None) -> "Config":
        """Arguments win over ``NETLIB_STATE_DIR`` and ``NETLIB_RUN_DIR``, those over the defaults. Raise as whole_path does."""
        return cls(
            state_dir=Path(whole_path(state_dir or os.environ.get("NETLIB_STATE_DIR") or DEFAULT_STATE_DIR)),
            run_dir=Path(whole_path(run_dir or os.environ.get("NETLIB_RUN_DIR") or DEFAULT_RUN_DIR)),
        )

    @property
    def socket_path(self) -> Path:
        """netlibd's control socket."""
        return self.run_dir / "netlibd.sock"

    @property
    def pid_file(self) -> Path:
        """netlibd's process id, flocked while it lives."""
        return self.run_dir / "netlibd.pid"

    @property
    def lock_dir(self) -> Path:
        """One lock file per record or shared key being worked on."""
        return self.run_dir / "locks"

    @property
    def sandbox_dir(self) -> Path:
        """resolv.conf, hosts and hostname of each sandbox."""
        return self.state_dir / "sandboxes"

    @property
    def container_dir(self) -> Path:
        """One folder per container of the bundled runtime."""
        return self.state_dir / "containers"
