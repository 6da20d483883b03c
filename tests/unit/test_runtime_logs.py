"""The minder's log as it is written and read again, and how small the minder is."""

import json
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from netlib.errors import ConfigError
from netlib.runtime.logs import parse_since, read
from netlib.runtime.shim import Log, escape, has_room, timestamp

ROOT = Path(__file__).parents[2]
# What each of these processes may load beyond a bare `python -IS`: every container pays for it, in memory and in time.
_COMMON = {"__future__", "netlib", "os", "_collections_abc", "stat", "_stat", "posixpath", "genericpath"}
_CTYPES = {"_ctypes", "_struct", "ctypes", "errno", "fcntl", "struct", "termios", "types"}
_ENUM = {
    "_collections",
    "_functools",
    "_operator",
    "collections",
    "enum",
    "functools",
    "itertools",
    "keyword",
    "operator",
    "reprlib",
}
_ALLOWED = {
    "shim": {"errno", "select"},
    "launch": {*_CTYPES, "marshal", "select"},
    "enter": {*_CTYPES, *_ENUM, "marshal", "select", "signal"},
}


@pytest.mark.parametrize("module", sorted(_ALLOWED))
def test_processes_of_a_container_import_little(module: str) -> None:
    code = (
        "import sys; before = set(sys.modules); sys.path.append(sys.argv[1]); import netlib.runtime." + module + ";"
        "print(*(name.partition('.')[0] for name in sys.modules if name not in before))"
    )
    run = subprocess.run([sys.executable, "-IS", "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - _COMMON <= _ALLOWED[module]


def test_a_launcher_whose_starter_has_gone_waits_for_nobody() -> None:
    """Its child may hang in a container's file system; nothing of it must outlive the command that was killed."""
    code = """if True:
        import os, sys
        from netlib.runtime import launch, process
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        os.close(reader)
        try:
            launch._read_status(os.pipe()[0], 1)
        except process.CommandRefused as error:
            sys.exit(str(error))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=20)
    assert (run.returncode, run.stderr) == (1, "the process that started it has ended\n")


def test_lines_are_kept_by_stream_and_partial_ones_joined(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    log.write("stdout", b"one\ntw")
    log.write("stderr", b"oops\n")
    log.write("stdout", b"o\nlast")
    log.close()
    entries = list(read(tmp_path / "log"))
    assert [(entry.stream, entry.log) for entry in entries] == [
        ("stdout", "one\n"),
        ("stderr", "oops\n"),
        ("stdout", "two\n"),
        ("stdout", "last"),
    ]
    assert all(len(entry.time) == len("2024-01-01T00:00:00.000000000Z") for entry in entries)


def test_long_lines_are_split(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    log.write("stdout", b"x" * 40_000 + b"\n")
    log.close()
    assert "".join(entry.log for entry in read(tmp_path / "log")) == "x" * 40_000 + "\n"
    log = Log(str(tmp_path / "endless"))
    log.write("stdout", b"x" * 40_000)
    log.close()
    assert [len(entry.log) for entry in read(tmp_path / "endless")] == [16384, 16384, 7232]


@pytest.mark.parametrize("line", [b'a"b\\c\t\r\n', b"\x00\x01\x1f\x7f", "schön \u2028 日本".encode(), b"\xff\xfe"])
def test_any_bytes_make_valid_json(line: bytes) -> None:
    assert json.loads(f'"{escape(line)}"') == line.decode(errors="replace")


def test_tail_counts_lines_from_the_end(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    for number in range(3000):
        log.write("stdout", f"{number} {'x' * 60}\n".encode())
    log.close()
    for tail in (0, 1, 5, 2999, 3000, 5000):
        numbers = [int(entry.log.split()[0]) for entry in read(tmp_path / "log", tail=tail)]
        assert numbers == list(range(max(0, 3000 - tail), 3000))


def test_since_leaves_out_what_is_older(tmp_path: Path) -> None:
    lines = [f'{{"log":"{n}\\n","stream":"stdout","time":"{timestamp(n * 10**9)}"}}' for n in range(5)]
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    assert [entry.log for entry in read(tmp_path / "log", since=timestamp(3 * 10**9))] == ["3\n", "4\n"]


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        '{"log":"a","stream":"stdout","time":"t"}\n{"log":"b","str\n{"log":"c","stream":"stdout","time":"t"}\n'
    )
    assert [entry.log for entry in read(tmp_path / "log")] == ["a", "c"]


def test_a_line_that_the_disk_cannot_take_leaves_no_part_of_it(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for line in (b"one\n", b"two\n"):
            log.write("stdout", line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write("stdout", b"three\n")
    log.close()
    assert [entry.log for entry in read(tmp_path / "log")] == ["one\n", "three\n"]


def _disk(size: int, available: int) -> os.statvfs_result:
    """A disk of that many MiB, of which so many are free for everybody."""
    return os.statvfs_result((4096, 1 << 20, size, available + 1, available, 0, 0, 0, 0, 255))


@pytest.mark.parametrize(("size", "least"), [(100_000, 16), (400, 16), (320, 16), (200, 10), (20, 1), (0, 0)])
def test_a_log_leaves_16_mib_of_its_disk_or_5_percent_of_a_small_one(size: int, least: int) -> None:
    assert has_room(_disk(size, least))
    assert least == 0 or not has_room(_disk(size, least - 1))


def test_each_gap_in_a_log_is_marked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(str(tmp_path / "log"))
    for available, line in ((50, b"one\n"), (0, b"two\n"), (0, b"three\n"), (50, b"four\n"), (0, b"five\n")):
        monkeypatch.setattr(os, "fstatvfs", lambda _, available=available: _disk(100, available))
        log.write("stdout", line)
    log.close()
    gap = ("stderr", f"netlib: no space left on the disk of {tmp_path}: output is lost from here on, until there is\n")
    assert [(entry.stream, entry.log) for entry in read(tmp_path / "log")] == [
        ("stdout", "one\n"),
        gap,
        ("stdout", "four\n"),
        gap,
    ]


def test_no_log_yet(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none")) == []


def test_since_is_a_time_or_a_duration() -> None:
    now = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()
    assert parse_since("90", now) == "2024-05-01T11:58:30.000000000Z"
    assert parse_since("2h", now) == "2024-05-01T10:00:00.000000000Z"
    assert parse_since("2024-05-01T10:00:00+00:00", now) == "2024-05-01T10:00:00.000000000Z"
    for text in ("yesterday", "nan", "inf", "-inf", "1e400", "99999999999999999999", "99999999999999d"):
        with pytest.raises(ConfigError, match="is no time"):
            parse_since(text, now)
