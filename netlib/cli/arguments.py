"""Reading the command line: argparse, made to say one sentence for wrong arguments and to show examples.

Its one rule: quick. A ready parser costs 9 ms with the import. Beyond a bare Python, importing argparse costs 8 ms, click 31,
typer 52 (medians); typer 0.29 imports pydantic too when it runs a command.
"""

import argparse
import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from netlib.cli.outcome import OURS
from netlib.config import Config
from netlib.errors import ConfigError

Command = tuple[Callable[[], "Parser"], Callable[[Config, Namespace], int]]
"""How a command's arguments are read, and what it does; answers with the exit code."""

_EXAMPLES = "examples:"
_HELP_COLUMNS = 80
_HIGHEST_NUMBER = (1 << 31) - 1
_TRUTH = re.compile(r"(--[a-z0-9-]+)=(true|false)", re.IGNORECASE)


def do(config: Config, command: Command, words: Sequence[str]) -> int:
    """Read *words* and do the command; return its exit code. Raises ConfigError for words that it does not understand."""
    parser, action = command
    try:
        given = parser().read(list(words))
    except HelpShown:
        return 0
    return action(config, given)


class WrongOption(ConfigError):
    """An option is unknown or its value malformed; as in Docker, that has an exit code of its own."""

    exit_code = OURS


class HelpShown(Exception):
    """The help was asked for and has been printed."""


class _Place(NamedTuple):
    """Where words that are no options go."""

    name: str
    metavar: str
    is_needed: bool
    takes_all: bool


class _Help(argparse.HelpFormatter):
    """Help as wide as the terminal, up to _HELP_COLUMNS; examples are left as they are, to be copied."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._width = min(self._width, _HELP_COLUMNS)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        import textwrap  # as argparse does it, only for help

        return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """The arguments of ``netlib NAME``."""

    def __init__(self, name: str, purpose: str, *examples: str, usage: str, short_help: bool = True) -> None:
        """*short_help* False leaves ``-h`` to the command (``run`` has a hostname there)."""
        super().__init__(
            prog=f"netlib {name}",
            usage=f"netlib {name} {usage}",
            description=purpose,
            epilog="\n".join([_EXAMPLES, *(f"  netlib {name} {example}".rstrip() for example in examples)]),
            formatter_class=_Help,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument(*(["-h"] if short_help else []), "--help", action="help", help="show this")
        self._fields: list[str] = []
        self._places: list[_Place] = []
        self._ends_options = False

    def read(self, words: list[str]) -> Namespace:
        """The arguments in *words*, and under ``asked`` those that are fields of the verb's request. ConfigError, HelpShown.

        A field with a dot (``resolver.servers``) is one of a struct in the request.
        """
        options, rest = self._split(words)
        given = self.parse_args(options)
        for place in self._places:
            if not rest and place.is_needed:
                raise self._refusal(f"no {place.metavar.lower().replace('|', ' or ')} given")
            value: str | list[str] = rest if place.takes_all else rest[0] if rest else ""
            setattr(given, place.name, value)
            rest = [] if place.takes_all else rest[1:]
        if rest:
            raise self._refusal(f"unrecognized arguments: {' '.join(rest)}")
        given.asked = self._asked(given)
        return given

    def _asked(self, given: Namespace) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        for field in self._fields:
            if (value := getattr(given, field)) is None:  # not given: the request's own default
                continue
            struct, _, name = field.rpartition(".")
            (asked.setdefault(struct, {}) if struct else asked)[name] = value
        return asked

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:  # argparse would drop this value
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        raise self._refusal(message, WrongOption)

    def _refusal(self, message: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        return kind(f"{self.prog.removeprefix('netlib ')}: {message}; see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    # --- what there is to read -----------------------------------------------------------------------------------------

    def switch(self, *flags: str, purpose: str, on: bool = False, field: str = "") -> None:
        """Add an option without a value; one that is *on* gets a ``--no-…`` too. *field* is that of the verb's request."""
        if on:
            self._add(flags, field, action=argparse.BooleanOptionalAction, default=True, help=purpose)
        else:
            self._add(flags, field, action="store_true", help=purpose)

    def value(self, *flags: str, purpose: str, metavar: str, default: str = "", field: str = "") -> None:
        """Add an option with one value."""
        self._add(flags, field, default=default, metavar=metavar, help=purpose)

    def values(self, *flags: str, purpose: str, metavar: str, field: str = "") -> None:
        """Add an option that may be repeated."""
        self._add(flags, field, action="append", default=[], metavar=metavar, help=purpose)

    def number(self, *flags: str, purpose: str, default: int = 0, field: str = "") -> None:
        """Add an option whose value is a whole number."""
        self._add(flags, field, type=_number, default=default, metavar="N", help=purpose)

    def seconds(self, *flags: str, purpose: str, field: str = "") -> None:
        """Add an option whose value is a number of seconds; None without it."""
        self._add(flags, field, type=_seconds, metavar="SECONDS", help=purpose)

    def _add(self, flags: Sequence[str], field: str, **how: Any) -> None:
        if field:
            how["dest"] = field
            self._fields.append(field)
        self.add_argument(*flags, **how)

    def format_option(self) -> None:
        """Add ``--format``, as ``template``."""
        self.add_argument("-f", "--format", dest="template", default="", metavar="FORMAT", help="json, or a template")

    def positional(self, name: str, metavar: str, *, is_needed: bool = True, field: bool = False) -> None:
        """Add one argument without a flag; empty where it is not given and not needed. It may be a *field* of the request."""
        self._places.append(_Place(name, metavar, is_needed, takes_all=False))
        self._fields += [name] if field else []

    def names(self, metavar: str) -> None:
        """Add one name or more, as ``names``."""
        self._places.append(_Place("names", metavar, is_needed=True, takes_all=True))

    def command_after(self, *names: str) -> None:
        """End the options with the first word that is none: then come *names*, then the command with options of its own."""
        self._ends_options = True
        self._places += [_Place(name.lower(), name, is_needed=True, takes_all=False) for name in names]
        self._places.append(_Place("command", "COMMAND", is_needed=True, takes_all=True))

    # --- reading -------------------------------------------------------------------------------------------------------

    def _split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Options, as argparse reads them (a value may begin with a dash), and the other words.

        Where a command is wanted, options end at the first other word, else they may stand anywhere.
        """
        options: list[str] = []
        others: list[str] = []
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if word == "--":
                return options, [*others, *words[at:]]
            if not word.startswith("-") or word == "-":
                others.append(word)
                if self._ends_options:
                    return options, [*others, *words[at:]]
            elif (flag := self._flag_before_value(word)) and at < len(words):
                if not word.startswith("--") and len(word) > 2:  # switches before it, as in -dp
                    options.append(word[:-1])
                options.append(f"{flag}={words[at]}")
                at += 1
            else:
                self._check_known(word)
                options += self._truth(word)
        return options, others

    def _check_known(self, word: str) -> None:
        """Refuse an option that is none of ours by its name alone, for the next word may be anything."""
        known = self._option_string_actions
        if word.startswith("--"):
            flags = [word.partition("=")[0]]
        else:
            letters = [f"-{letter}" for letter in word[1:]]
            with_value = (at for at, flag in enumerate(letters, 1) if flag in known and known[flag].nargs != 0)
            flags = letters[: next(with_value, len(letters))]
        for flag in flags:
            if flag not in known:
                self.error(f"unknown option {flag}" + (f" in {word}" if len(flags) > 1 else ""))

    def _truth(self, word: str) -> list[str]:
        """Docker's ``--flag=true`` and ``--flag=false`` as argparse reads them."""
        found = _TRUTH.fullmatch(word)
        action = self._option_string_actions.get(found[1]) if found else None
        if not found or action is None or action.nargs != 0:
            return [word]
        if found[2].lower() == "true":
            return [found[1]]
        negative = f"--no-{found[1][2:]}"
        return [negative] if negative in action.option_strings else []

    def _flag_before_value(self, word: str) -> str:
        """The long flag of an option (the last one in ``-dp``) whose value is the next word; empty where there is none."""
        if word.startswith("--"):
            action = self._option_string_actions.get(word)
            return word if action is not None and action.nargs != 0 else ""
        for at, letter in enumerate(word[1:], 2):
            action = self._option_string_actions.get(f"-{letter}")
            if action is not None and action.nargs != 0:
                return max(action.option_strings, key=len) if at == len(word) else ""
        return ""


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
        raise ConfigError(f"--env-file {path!r} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--env-file {path!r} is not UTF-8 text") from error
    return [line for line in lines if line and not line.startswith("#")]


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not -_HIGHEST_NUMBER <= number <= _HIGHEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is beyond {_HIGHEST_NUMBER}")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; give seconds from 0 on")
    return seconds
