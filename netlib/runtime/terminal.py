"""The caller's own terminal: its size, its raw mode while a container uses it, and the detach keys.

This also runs under ``python -IS``.
"""

from __future__ import annotations

import os
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def is_terminal(fd: int) -> bool:
    """Whether *fd* is a terminal; False for a closed descriptor."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def size(fd: int) -> tuple[int, int]:
    """Return rows and columns of a terminal; zeros where *fd* is no terminal."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return rows, columns


class DetachKeys:
    """Finds the detach keys among the keys pressed. As with Docker, their possible beginning is held back until another key."""

    def __init__(self, keys: bytes) -> None:
        """Look for the sequence *keys*; without keys nothing detaches."""
        self._keys = keys
        self._found = 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Return the bytes of *data* (empty at the end of input) for the container, and whether the sequence is complete."""
        if not self._keys:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._found]:
                self._found += 1
                if self._found == len(self._keys):
                    return bytes(passed), True
            else:
                passed += self._keys[: self._found] + bytes([byte])
                self._found = 0
        return bytes(passed), False


class RawMode:
    """Raw mode of the terminal *fd* while it is entered: each key is read as it is; no effect when *fd* is no terminal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> RawMode:
        if is_terminal(self.fd):
            self._before = termios.tcgetattr(self.fd)
            now = termios.tcgetattr(self.fd)
            now[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
            now[1] &= ~termios.OPOST
            now[2] = now[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
            now[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
            now[6][termios.VMIN], now[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self.fd, termios.TCSADRAIN, now)  # TCSADRAIN keeps keys that were typed ahead
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)
