"""What the commands print: tables, JSON and templates on standard output, progress and questions on the terminal.

Colours and progress are shown on a terminal only, and never with ``NO_COLOR`` set.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from netlib.errors import ConfigError

if TYPE_CHECKING:
    from threading import Event

PROGRESS_AFTER_SECONDS, REFRESH_SECONDS = 0.4, 0.1
SHORT_ID = 12
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class Column:
    """One column of a listing: its heading as Docker writes it, and the key of its value in a row."""

    def __init__(self, heading: str, key: str) -> None:
        self.heading = heading
        self.key = key


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], template: str = "", *, quiet: str = "") -> None:
    """Print a listing as Docker does: a table, ``--format json`` (one object a line), a template, or the key *quiet* alone."""
    if quiet:
        lines = [str(row[quiet]) for row in rows]
    elif template == "json":
        lines = [json.dumps(row) for row in rows]
    elif template in ("", "table"):
        lines = table_lines(
            [column.heading for column in columns], [[str(row[column.key]) for column in columns] for row in rows]
        )
    else:
        lines = _templated(rows, columns, template)
    if lines:
        print("\n".join(lines))


def table_lines(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Align *cells* under *headings*, three spaces between columns; headings are bold on a terminal."""
    widths = [max(len(line[at]) for line in (headings, *cells)) for at in range(len(headings))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (headings, *cells)
    ]
    if coloured(sys.stdout):
        lines[0] = f"{_BOLD}{lines[0]}{_PLAIN}"
    return lines


def print_objects(items: Sequence[Any], template: str = "") -> None:
    """Print *items* as one JSON array, or each as a line by a template (``json`` for one object a line)."""
    if template == "":
        print(json.dumps(items, indent=4))
    elif template == "json":
        for item in items:
            print(json.dumps(item))
    else:
        from netlib.cli.template import Template

        parsed = Template(template)
        for item in items:
            print(parsed.render(item))


def coloured(stream: Any) -> bool:
    """Whether *stream* is a terminal that takes colours."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(what: str) -> Iterator[Callable[[Any], None] | None]:
    """Show *what*, a spinner and the object changed last on standard error if the block takes longer than a moment.

    Yields the observer that ``netlib.verbs.call.call`` calls for every object; None where standard error is no terminal.
    """
    if not coloured(sys.stderr):
        yield None
        return
    import threading  # 1 ms, only for a spinner

    last: list[str] = []
    ended = threading.Event()
    shower = threading.Thread(target=_spin, args=(what, last, ended), daemon=True)
    shower.start()
    try:
        yield lambda event: last.append(event["object"])
    finally:
        ended.set()
        shower.join()


def confirm(question: str) -> None:
    """Ask *question* on standard error; ConfigError for any answer but y or yes, and for none."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError("not confirmed, so nothing was changed; answer y, or pass --force to skip the question")


def _templated(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], template: str) -> list[str]:
    from netlib.cli.template import Template

    headed = template.startswith("table ")
    parsed = Template(template.removeprefix("table "))
    lines = [parsed.render(row) for row in rows]
    if not headed:
        return lines
    known = {column.key: column.heading for column in columns}
    keys = {key for row in rows for key in row} | set(known)
    headings = parsed.render({key: known.get(key, key.upper()) for key in keys})
    return table_lines(headings.split("\t"), [line.split("\t") for line in lines])


def _spin(what: str, last: Sequence[str], ended: "Event") -> None:
    if ended.wait(PROGRESS_AFTER_SECONDS):
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        while not ended.wait(REFRESH_SECONDS):
            status.update(f"{what}: {len(last)} objects, {last[-1]}" if last else what)
