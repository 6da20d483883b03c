"""Where netlib keeps its things: folders from arguments or ``NETLIB_*`` variables, else the defaults.

Several simulated hosts share one machine by giving each folders of its own. Who is root in a user namespace only has the
defaults below their own user's folders.
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from netlib.errors import ConfigError

DEFAULT_STATE_DIR = "/var/lib/netlib"
DEFAULT_RUN_DIR = "/run/netlib"


def whole_path(path: str) -> str:
    """Return *path* as an absolute path; ConfigError when the current folder was removed."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path!r} is relative to the current folder, which was removed; change to another one") from error


_EVERYBODY = ["0", "0", "4294967295"]  # the user map of the machine's own user namespace
_SO_NETNS_COOKIE = 71


def is_ours(path: str) -> bool:
    """Whether we may write in the folder *path*, or make it where it is missing."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.access(path, os.W_OK | os.X_OK)


def _default_folders() -> tuple[str, str]:
    """The default state and run folder.

    Root of a user namespace that may not write in the machine's has them below its user's own, by the XDG base directory
    specification; the folder name contains the netns cookie, because the next unshared netns is another host.
    """
    state, run = DEFAULT_STATE_DIR, DEFAULT_RUN_DIR
    if os.geteuid() != 0 or (is_ours(state) and is_ours(run)):
        return state, run
    with open("/proc/self/uid_map") as file:
        if file.read().split() == _EVERYBODY:
            return state, run
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    own = f"netlib/netns-{cookie}"
    if not is_ours(state):
        state = f"{os.environ.get('XDG_DATA_HOME') or os.path.expanduser('~/.local/share')}/{own}"
    if not is_ours(run):
        place = os.environ.get("XDG_RUNTIME_DIR", "")
        run = f"{place}/{own}" if place and is_ours(place) else f"{state}/run"
    return state, run


StrPath = str | os.PathLike[str]


def _folder(name: str, path: StrPath) -> Path:
    text: Any = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{name}={path!r} is no path; give a text or a pathlib.Path")
    return Path(whole_path(text))


class _Folders(NamedTuple):
    state_dir: Path
    run_dir: Path


class Config(_Folders):
    """Folders of one simulated or real host; no struct, for clients import it, and msgspec would be most of their time."""

    __slots__ = ()

    def __new__(cls, state_dir: StrPath = DEFAULT_STATE_DIR, run_dir: StrPath = DEFAULT_RUN_DIR) -> "Config":
        """Raise ConfigError for a value that is no path, and as whole_path does."""
        return super().__new__(cls, _folder("state_dir", state_dir), _folder("run_dir", run_dir))

    @classmethod
    def from_environment(cls, *, state_dir: str | None = None, run_dir: str | None = None) -> "Config":
        """Arguments win over ``NETLIB_STATE_DIR`` and ``NETLIB_RUN_DIR``, those over the defaults. Raise as whole_path does."""
        state = state_dir or os.environ.get("NETLIB_STATE_DIR")
        run = run_dir or os.environ.get("NETLIB_RUN_DIR")
        if not (state and run):
            default_state, default_run = _default_folders()
            state, run = state or default_state, run or default_run
        return cls(state, run)

    @property
    def socket_path(self) -> Path:
        """netlibd's control socket, on which netlibd speaks first."""
        return self.run_dir / "control.sock"

    @property
    def former_socket_path(self) -> Path:
        """The control socket of an earlier netlib and of its launchers, on which the client speaks first."""
        return self.run_dir / "netlibd.sock"

    @property
    def starting_file(self) -> Path:
        """Flocked by a netlibd that is starting."""
        return self.run_dir / "netlibd.starting"

    @property
    def pid_file(self) -> Path:
        """netlibd's process id, flocked while it lives."""
        return self.run_dir / "netlibd.pid"

    @property
    def log_file(self) -> Path:
        """What netlibd tells of itself; bounded."""
        return self.run_dir / "netlibd.log"

    @property
    def lock_dir(self) -> Path:
        """One lock file per record or shared key being worked on."""
        return self.run_dir / "locks"

    @property
    def memory_dir(self) -> Path:
        """The folder for facts about the store that must survive its loss, until the next boot; one for each state folder."""
        from hashlib import blake2b  # 2 ms, which clients need not wait for

        return self.run_dir / "stores" / blake2b(os.fsencode(os.path.realpath(self.state_dir)), digest_size=6).hexdigest()

    @property
    def sandbox_dir(self) -> Path:
        """resolv.conf, hosts and hostname of each sandbox."""
        return self.state_dir / "sandboxes"

    @property
    def container_dir(self) -> Path:
        """One folder per container of the bundled runtime."""
        return self.state_dir / "containers"
