"""Reading a container's log: one JSON line per line of output, as Docker's json-file driver writes them."""

import os
import select
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from netlib.errors import ConfigError
from netlib.kernel import inotify
from netlib.structs import decoder

_BLOCK = 64 * 1024


class LogEntry(Struct, frozen=True):
    """One line of output, or a part of a line of more than 16 KiB, and then *log* does not end with a newline."""

    log: str
    stream: str  # "stdout" or "stderr"
    time: str  # RFC 3339, nanoseconds, UTC


_entry = decoder(LogEntry)


def read(path: Path, *, tail: int | None = None, since: str = "") -> Iterator[LogEntry]:
    """Yield the last *tail* entries (None: all) of the log, none older than *since* (RFC 3339); none when there is no log."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with open(fd, "rb") as file:
        if tail is not None:
            file.seek(_tail_offset(fd, tail))
        yield from _entries(file, since)


def follow(path: Path, ended: int, *, tail: int | None = None, since: str = "") -> Iterator[LogEntry]:
    """Yield entries as :func:`read` does, then new ones, until the descriptor *ended* is readable and all entries are read.

    It waits for new entries by inotify and does not poll the file.
    """
    watch = inotify.watch(path, inotify.MODIFIED)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if tail is not None:
            os.lseek(fd, _tail_offset(fd, tail), os.SEEK_SET)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        poll.register(ended, select.POLLIN)
        rest, over = b"", False
        while True:
            while data := os.read(fd, _BLOCK):
                whole, newline, rest = (rest + data).rpartition(b"\n")
                yield from _entries((whole + newline).splitlines(), since)
            if over:
                return
            events = dict(poll.poll())
            over = ended in events
            if watch in events:
                os.read(watch, _BLOCK)
    finally:
        os.close(fd)
        os.close(watch)


def parse_since(text: str, now: float) -> str:
    """Read ``--since`` as :func:`parse_moment` does, and return it as RFC 3339 in UTC."""
    return datetime.fromtimestamp(parse_moment(text, now), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def parse_moment(text: str, now: float, option: str = "--since") -> float:
    """Read a time in RFC 3339, or a duration before *now* (``90``, ``10m``, ``2h``), and return seconds since the epoch.

    Raises ConfigError with the name of the *option*.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        try:
            moment = datetime.fromtimestamp(now - float(number) * unit, UTC)
        except ValueError:
            moment = datetime.fromtimestamp(datetime.fromisoformat(text).timestamp(), UTC)
    except (ValueError, OverflowError, OSError) as error:  # the last two: beyond the years that datetime can hold
        raise ConfigError(f"{option} {text!r} is no time (2024-05-01T10:00:00) and no duration (90s, 10m, 2h)") from error
    return moment.timestamp()


def _entries(lines: Iterable[bytes], since: str) -> Iterator[LogEntry]:
    for line in lines:
        try:
            entry = _entry(line)
        except msgspec.DecodeError:  # a line that was cut off when the disk was full
            continue
        if entry.time >= since:
            yield entry


def _tail_offset(fd: int, lines: int) -> int:
    """Return the offset at which the last *lines* lines begin, found by reading backwards from the end."""
    position = os.fstat(fd).st_size
    wanted = lines + 1  # newlines to pass, including the one at the end of the file
    if lines <= 0:
        return position
    while position:
        start = max(0, position - _BLOCK)
        block = os.pread(fd, position - start, start)
        while (at := block.rfind(b"\n")) >= 0:
            wanted -= 1
            if not wanted:
                return start + at + 1
            block = block[:at]
        position = start
    return 0
