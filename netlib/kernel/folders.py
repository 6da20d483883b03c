"""Folders on disk: made with the right mode under any umask, and refused where another user owns them.

The owner of a folder could replace the files in it by links at any time.
"""

import errno
import os
import stat
from contextlib import suppress

from netlib.errors import NotPermitted

__all__ = ["PRIVATE", "check_owner", "make_folder", "open_private", "own_folder"]

PRIVATE = 0o700
PRIVATE_FILE = 0o600
_PUBLIC = 0o755
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_folder(path: str | os.PathLike[str], mode: int = _PUBLIC) -> None:
    """Make a folder with *mode*, and missing parents with mode 755, whatever the umask; an existing one is left unchanged.

    Raises OSError, NotADirectoryError where something else has the name.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        make_folder(parent)
    try:
        os.mkdir(path, mode)
    except FileExistsError as error:
        if not os.path.isdir(path):  # else another process was first
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error
        return
    os.chmod(path, mode)


def check_owner(path: str | os.PathLike[str], what: str, remedy: str) -> None:
    """Raise NotPermitted for a folder that belongs to another user, or that a link of another user leads to.

    *what* names the folder for the message, *remedy* says how another one is chosen.
    """
    for found in (os.lstat(path), os.stat(path)):
        if found.st_uid != os.geteuid():
            raise NotPermitted(
                f"{what} {os.fspath(path)} belongs to user {found.st_uid}, who could change what netlib keeps there; "
                f"make it user {os.geteuid()}'s (chown), or {remedy}"
            )


def open_private(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file that its owner alone may use; O_CREAT in *flags* makes it, a link is not followed. Raises OSError."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    if stat.S_IMODE(os.fstat(fd).st_mode) != PRIVATE_FILE:
        os.fchmod(fd, PRIVATE_FILE)
    return fd


def own_folder(path: str | os.PathLike[str], what: str, remedy: str) -> None:
    """Make a folder that only its owner may enter, and check the owner by :func:`check_owner`. Raises OSError as well."""
    make_folder(path, PRIVATE)
    check_owner(path, what, remedy)
    if stat.S_IMODE(os.stat(path).st_mode) & _OF_OTHERS:
        with suppress(PermissionError):  # a read-only mount of another user namespace: its owner is checked all the same
            os.chmod(path, PRIVATE)
