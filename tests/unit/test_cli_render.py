"""What is printed: Docker's tables, JSON, templates; colours and progress on a terminal only."""

import io
import json
import os
import pty
import sys
import threading

import pytest

from netlib.cli.render import PROGRESS_AFTER_SECONDS, Column, print_objects, print_rows, progress
from netlib.errors import ConfigError

COLUMNS = (Column("NETWORK ID", "ID"), Column("NAME", "Name"))
ROWS = [{"ID": "0123456789ab", "Name": "web", "Labels": "a=1"}, {"ID": "ba9876543210", "Name": "a-longer-name", "Labels": ""}]


@pytest.mark.parametrize(
    ("template", "quiet", "expected"),
    [
        ("", "", "NETWORK ID     NAME\n0123456789ab   web\nba9876543210   a-longer-name\n"),
        ("table", "", "NETWORK ID     NAME\n0123456789ab   web\nba9876543210   a-longer-name\n"),
        ("", "ID", "0123456789ab\nba9876543210\n"),
        ("{{.Name}}:{{.Labels}}", "", "web:a=1\na-longer-name:\n"),
        (r"table {{.Name}}\t{{.Labels}}", "", "NAME            LABELS\nweb             a=1\na-longer-name\n"),
    ],
)
def test_listings(template: str, quiet: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, COLUMNS, template, quiet=quiet)
    assert capsys.readouterr().out == expected


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, COLUMNS, "json")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_an_empty_listing_has_its_headings_only(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([], COLUMNS)
    print_rows([], COLUMNS, "json")
    print_rows([], COLUMNS, quiet="ID")
    assert capsys.readouterr().out == "NETWORK ID   NAME\n"


def test_inspected_objects_are_one_array_or_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_objects(ROWS)
    assert json.loads(capsys.readouterr().out) == ROWS
    print_objects(ROWS, "{{.Name}}")
    assert capsys.readouterr().out == "web\na-longer-name\n"
    with pytest.raises(ConfigError, match="no field 'Nmae'"):
        print_objects(ROWS, "{{.Nmae}}")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_headings_are_bold_on_a_terminal_unless_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := _Terminal())
    print_rows(ROWS, COLUMNS)
    assert terminal.getvalue().startswith("\x1b[1mNETWORK ID")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal := _Terminal())
    print_rows(ROWS, COLUMNS)
    assert terminal.getvalue().startswith("NETWORK ID")


def test_progress_says_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("removing") as tell:
        assert tell is None
    assert capsys.readouterr().err == ""


def test_progress_shows_what_takes_long_and_the_object_changed_last(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    seen = bytearray()
    shown = threading.Event()

    def watch() -> None:
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # EIO: the terminal was closed
                return
            seen.extend(data)
            if b"link/host/veth1" in seen:
                shown.set()

    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        watcher = threading.Thread(target=watch)
        watcher.start()
        with progress("removing everything") as tell:
            assert tell is not None
            tell({"moment": "removed", "object": "link/host/veth1"})
            assert shown.wait(10 + PROGRESS_AFTER_SECONDS)
    watcher.join(10)
    os.close(ours)
    assert b"removing everything: 1 objects" in seen


def test_short_work_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
    with progress("creating network web") as tell:
        assert tell is not None
    assert terminal.getvalue() == ""
