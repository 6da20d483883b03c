"""Argparse, for the commands that must be quick: one sentence for wrong arguments, examples under every help."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import NoReturn

from netlib.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """The arguments of ``netlib COMMAND``; wrong ones raise ConfigError."""

    def __init__(self, command: str, purpose: str, examples: Sequence[str], *, usage: str, short_help: bool = True) -> None:
        """*short_help* False leaves ``-h`` to the command (``run`` has a hostname there)."""
        super().__init__(
            prog=f"netlib {command}",
            usage=f"netlib {command} {usage}",
            description=purpose,
            epilog="\n".join(["examples:", *(f"  {line}" for line in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument(*(["-h"] if short_help else []), "--help", action="help", help="show this")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    def switch(self, *flags: str, purpose: str) -> None:
        """Add an option without a value."""
        self.add_argument(*flags, action="store_true", help=purpose)

    def value(self, *flags: str, purpose: str, metavar: str, default: str = "") -> None:
        """Add an option with one value."""
        self.add_argument(*flags, default=default, metavar=metavar, help=purpose)

    def values(self, *flags: str, purpose: str, metavar: str) -> None:
        """Add an option that may be repeated."""
        self.add_argument(*flags, action="append", default=[], metavar=metavar, help=purpose)

    def seconds(self, *flags: str, purpose: str) -> None:
        """Add an option whose value is a number of seconds."""
        self.add_argument(*flags, type=_seconds, metavar="SECONDS", help=purpose)

    def names(self, metavar: str = "CONTAINER") -> None:
        """Add one name or more."""
        self.add_argument("names", nargs="+", metavar=metavar, help=argparse.SUPPRESS)

    def name(self, metavar: str = "CONTAINER") -> None:
        """Add one name."""
        self.add_argument("name", metavar=metavar, help=argparse.SUPPRESS)

    def command(self) -> None:
        """Add the command to run: all that is left, its own options too."""
        self.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


class HelpShown(Exception):
    """The help was asked for and has been printed."""


def environment(items: Sequence[str], files: Sequence[str], inherited: Mapping[str, str]) -> dict[str, str]:
    """What ``--env-file`` and then ``-e`` say; a ``NAME`` alone takes its value in *inherited*, or is left out.

    Raises ConfigError for a variable without a name and a file that cannot be read.
    """
    found: dict[str, str] = {}
    for item in [*(line for path in files for line in _lines(path)), *items]:
        name, equals, value = item.partition("=")
        if not name:
            raise ConfigError(f"environment variable {item!r} has no name; write NAME=VALUE or NAME")
        if equals:
            found[name] = value
        elif name in inherited:
            found[name] = inherited[name]
    return found


def _lines(path: str) -> list[str]:
    """The variables in an environment file: a line each, without empty lines and comments."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise ConfigError(f"--env-file {path!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--env-file {path!r} is not UTF-8 text") from error
    return [line for line in lines if line and not line.startswith("#")]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; give seconds from 0 on")
    return seconds
