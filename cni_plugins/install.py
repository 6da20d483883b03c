"""Our executables in a folder of CNI plugins: how they are written, told from others', and removed.

One rule: only files that carry our mark are overwritten or removed. A file of somebody else is replaced only on request, and is
kept in a subfolder. At every moment each name leads to a whole executable, the former or the new one.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cni_plugins.protocol import NEWEST, CniError, Code, error_json
from cni_plugins.types import plugin_types
from netlib import __version__
from netlib.config import Config
from netlib.errors import ConfigError
from netlib.kernel.folders import make_folder
from netlib.wire.client import DEADLINE_SECONDS

__all__ = ["KEPT", "Entry", "Installed", "install", "uninstall"]

KEPT = "before-netlib"
"""The subfolder of the plugins' folder that keeps the files of others which had our names."""

_SCRATCH = ".netlib-install-"
_LAUNCHER = Path(__file__).parent / "launcher"
_MARK = b"netlib's CNI launcher, written by `netlib cni install`"
_LARGEST = 4 << 20  # bytes; every launcher is far smaller
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_SECONDS, _TRY_SECONDS = 60.0, 30.0
_LONGEST_SHEBANG = 255  # BINPRM_BUF_SIZE

Kind = Literal["c", "python"]

# What the interpreter runs. Where the package has been removed since, it answers with an error object, as a plugin has to.
_PROGRAM = """\
import sys
sys.path.append({root!r})
try:
    from cni_plugins.launcher.launch import main
except ImportError:
    sys.exit(print({gone!r}) or 1)
main(sys.argv[{kind_at}].rpartition("/")[2], {state_dir!r}, {run_dir!r}, {deadline})
"""


class Entry(NamedTuple):
    """One file and what was done: written, unchanged, replaced (the former file is in KEPT), removed, restored, left."""

    path: Path
    action: str


class Installed(NamedTuple):
    """The kind of launcher, what was done with each file, and why the launcher is not in C where that was tried."""

    launcher: Kind
    entries: list[Entry]
    note: str


# --- install -------------------------------------------------------------------------------------------------------------


def install(
    folder: Path,
    config: Config,
    *,
    launcher: Kind | None = None,
    replace: bool = False,
    deadline: int = int(DEADLINE_SECONDS),
    types: Sequence[str] | None = None,
) -> Installed:
    """Write an executable for each of *types* (None: all) into *folder*.

    *launcher* None takes C where there is a compiler and its output runs. *replace* moves files of others that have these names
    to KEPT; without it they raise ConfigError, and nothing is written. *deadline*, in seconds, is how long a
    call may take. The folders of *config* are where the launchers look for netlibd, unless their environment says otherwise.
    """
    names = plugin_types() if types is None else tuple(types)
    try:
        make_folder(folder)
        foreign = [name for name in names if _is_foreign(folder / name)]
        if foreign and not replace:
            raise ConfigError(
                f"{folder} has {', '.join(foreign)} of somebody else; pass --replace to set them aside in {folder / KEPT}, "
                "from where `netlib cni uninstall` takes them back, or choose another folder"
            )
        with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
            kind, content, note = _make_launcher(Path(scratch), config, launcher, deadline)
            return Installed(kind, [_put(folder / name, content, Path(scratch)) for name in names], note)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror}; choose a folder that can be written") from error


def _put(path: Path, content: bytes, scratch: Path) -> Entry:
    action = "written"
    if _is_ours(path):
        if path.read_bytes() == content and stat.S_IMODE(path.stat().st_mode) == 0o755:
            return Entry(path, "unchanged")
    elif os.path.lexists(path):
        _link_to_kept(path, scratch)
        action = "replaced"
    os.replace(_write_executable(scratch / path.name, content), path)
    return Entry(path, action)


def _link_to_kept(path: Path, scratch: Path) -> None:
    """Give somebody's file a second name in KEPT, in the place of an older file that an earlier install kept there."""
    kept = path.parent / KEPT
    make_folder(kept)
    second = scratch / f"{path.name}.kept"
    os.link(path, second, follow_symlinks=False)
    os.replace(second, kept / path.name)


def _write_executable(path: Path, content: bytes) -> Path:
    """Write an executable and flush it to the disk, so that its final name never leads to a part of it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o755)
        os.fsync(file.fileno())
    return path


# --- uninstall -----------------------------------------------------------------------------------------------------------


def uninstall(folder: Path) -> list[Entry]:
    """Remove our executables from *folder*, put back the files that they replaced, and return what was done with each."""
    kept = folder / KEPT
    entries = []
    try:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if _is_ours(path):
                if os.path.lexists(kept / path.name):
                    os.replace(kept / path.name, path)
                    entries.append(Entry(path, "restored"))
                else:
                    path.unlink()
                    entries.append(Entry(path, "removed"))
        for former in sorted(kept.iterdir()) if kept.is_dir() else ():
            path = folder / former.name
            if os.path.lexists(path):  # somebody has written another file of this name since
                entries.append(Entry(former, "left"))
            else:
                os.replace(former, path)
                entries.append(Entry(path, "restored"))
        if kept.is_dir() and not any(kept.iterdir()):
            kept.rmdir()
        for scratch in folder.glob(f"{_SCRATCH}*"):  # of an install that was killed
            shutil.rmtree(scratch)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror}; run this as the folder's owner") from error
    return entries


def _is_foreign(path: Path) -> bool:
    return os.path.lexists(path) and not _is_ours(path)


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
        return stat.S_ISREG(found.st_mode) and found.st_size <= _LARGEST and _MARK in path.read_bytes()
    except FileNotFoundError:
        return False


# --- launchers -----------------------------------------------------------------------------------------------------------


def _make_launcher(scratch: Path, config: Config, launcher: Kind | None, deadline: int) -> tuple[Kind, bytes, str]:
    """Make a launcher and try it; return its kind, its bytes, and why it is not the C one. Raises ConfigError."""
    note = ""
    if launcher != "python":
        try:
            return "c", _try_launcher(scratch, _c_launcher(scratch, config, deadline)), note
        except ConfigError as error:
            if launcher is not None:
                raise
            note = str(error)
    return "python", _try_launcher(scratch, _python_launcher(config, deadline)), note


def _try_launcher(scratch: Path, content: bytes) -> bytes:
    """Have the launcher answer one call, VERSION, without a netlibd: then its interpreter and all libraries are needed too."""
    path = _write_executable(scratch / plugin_types()[0], content)
    environ = {"CNI_COMMAND": "VERSION", "NETLIB_RUN_DIR": str(scratch)}
    try:
        done = subprocess.run([path], env=environ, capture_output=True, timeout=_TRY_SECONDS, check=False)
        if not (done.returncode == 0 and NEWEST in json.loads(done.stdout)["supportedVersions"]):
            raise ValueError(done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}")
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"the launcher made for {scratch.parent} does not run: {error}") from error
    return content


def _python_launcher(config: Config, deadline: int) -> bytes:
    shebang = f"#!{_python()} -ISXutf8".encode(errors="surrogateescape")
    if len(shebang) > _LONGEST_SHEBANG or b" " in os.fsencode(_python()) or b"\n" in shebang:
        raise ConfigError(f"the kernel takes no such path behind #!: {_python()}; install a C compiler, or netlib elsewhere")
    # A comment in the source's own encoding; what is no UTF-8 in a path is escaped by repr.
    return b"%s\n# %s\n%s" % (shebang, _MARK, _program(config, deadline, kind_at=0).encode())


def _program(config: Config, deadline: int, *, kind_at: int) -> str:
    root = str(Path(__file__).parents[1])
    gone = CniError(
        Code.IO_FAILURE, f"netlib is no longer at {root}", "run `netlib cni install` again, or `netlib cni uninstall`"
    )
    return _PROGRAM.format(
        root=root,
        gone=error_json(gone, NEWEST).decode().rstrip("\n"),
        kind_at=kind_at,
        state_dir=str(config.state_dir),
        run_dir=str(config.run_dir),
        deadline=deadline,
    )


def _c_launcher(scratch: Path, config: Config, deadline: int) -> bytes:
    compiler = _compiler()
    if compiler is None:
        raise ConfigError(f"no C compiler ({', '.join(_COMPILERS)}) is in PATH; install one, or go on with --python")
    texts = {
        "MARKER": _MARK,
        "PYTHON": os.fsencode(_python()),
        "BOOTSTRAP": _program(config, deadline, kind_at=1).encode(),
        "STATE_DIR": os.fsencode(config.state_dir),
        "RUN_DIR": os.fsencode(config.run_dir),
        "RELEASE": __version__.encode(),
    }
    definitions = [f"-D{name}={_c_string(text)}" for name, text in texts.items()]
    output = scratch / "launcher"
    command = [compiler, "-std=c11", "-O2", "-s", *definitions, f"-DDEADLINE={deadline}"]
    try:
        done = subprocess.run(
            [*command, "-o", output, _LAUNCHER / "launcher.c"], capture_output=True, timeout=_COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{compiler} cannot compile the launcher: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise ConfigError(f"{compiler} cannot compile the launcher: {_first_error(lines)}; pass --python")
    return output.read_bytes()


def _first_error(lines: Iterable[str]) -> str:
    found = list(lines)
    return next((line for line in found if "error" in line), found[0])


def _c_string(text: bytes) -> str:
    """*text* as a string of C; escapes are octal, for a hexadecimal one would include a digit that follows it."""
    plain = (chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in text)
    return f'"{"".join(plain)}"'


def _compiler() -> str | None:
    return next((path for name in _COMPILERS if (path := shutil.which(name))), None)


def _python() -> str:
    return os.path.abspath(sys.executable)
