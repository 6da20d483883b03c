"""The caller's own terminal: size, raw while a container uses it, the keys that leave it. Runs under ``python -IS`` as well."""

from __future__ import annotations

import os
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def is_terminal(fd: int) -> bool:
    """Whether *fd* is a terminal at all; a closed descriptor is none."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def size(fd: int) -> tuple[int, int]:
    """Rows and columns of a terminal; zeros where *fd* is none."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return rows, columns


class DetachKeys:
    """Finds the keys that detach among those pressed, as Docker: what may be their beginning is held back until it is not."""

    def __init__(self, keys: bytes) -> None:
        """Without *keys*, nothing detaches."""
        self._keys = keys
        self._found = 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What of *data* (empty at the end of input) is for the container, and whether all the keys were pressed."""
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


class Raw:
    """While entered, every key pressed on *fd* is passed on as it is; no effect when that is no terminal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> Raw:
        if is_terminal(self.fd):
            self._before = termios.tcgetattr(self.fd)
            now = termios.tcgetattr(self.fd)
            now[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
            now[1] &= ~termios.OPOST
            now[2] = now[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
            now[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
            now[6][termios.VMIN], now[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self.fd, termios.TCSADRAIN, now)  # what was typed ahead stays
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)
