"""Frames out of a stream of bytes: bytes in, bodies out, no I/O.

::

    ┌────────────┬──────────────────┬────────────┬────────
    │ length (4) │ body (length)    │ length (4) │ body …
    └────────────┴──────────────────┴────────────┴────────

The length is in network order. Both sides of a connection read by :class:`Frames`, however the stream was cut into pieces.
"""

from netlib.wire.protocol import LENGTH

__all__ = ["FrameTooLong", "Frames"]


class FrameTooLong(Exception):
    """The length of a frame is more than the reader takes; ``size`` is that length."""

    def __init__(self, size: int) -> None:
        super().__init__(f"a frame of {size} bytes")
        self.size = size


class Frames:
    """The part of a stream that has arrived and was not taken yet."""

    def __init__(self, most: int) -> None:
        """*most* is the length of the longest body, in bytes."""
        self._most = most
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that have arrived. Raises FrameTooLong as soon as the length of the next frame has arrived."""
        self._buffer += data
        if len(self._buffer) >= LENGTH.size and self._size() > self._most:
            raise FrameTooLong(self._size())

    def take(self) -> bytes | None:
        """The next body, or None when it is not all there yet. Raises FrameTooLong for the frame behind it."""
        if self.missing:
            return None
        end = LENGTH.size + self._size()
        body = bytes(self._buffer[LENGTH.size : end])
        del self._buffer[:end]
        self.feed(b"")
        return body

    @property
    def missing(self) -> int:
        """How many bytes to read without reading past the next frame; 0 when that is whole."""
        if len(self._buffer) < LENGTH.size:
            return LENGTH.size - len(self._buffer)
        return max(LENGTH.size + self._size() - len(self._buffer), 0)

    def __bool__(self) -> bool:
        """Whether there are bytes that were not taken."""
        return bool(self._buffer)

    def _size(self) -> int:
        (size,) = LENGTH.unpack_from(self._buffer)
        return int(size)
