"""The command line, read by argparse: one sentence for wrong arguments, and help with examples.

One rule: quick, as every command waits for it. A ready parser costs 9 ms with the import. Beyond a bare Python, importing
argparse costs 8 ms, click 31, typer 52 (medians); typer 0.29 imports pydantic too when it runs a command.
"""

import argparse
import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from netlib.cli.outcome import REFUSED
from netlib.config import Config
from netlib.errors import ConfigError

Command = tuple[Callable[[], "Parser"], Callable[[Config, Namespace], int]]
"""The parser of a command's arguments, and the function that does the command and returns its exit code."""

_EXAMPLES = "examples:"
_HELP_COLUMNS = 80
_HIGHEST_NUMBER = (1 << 31) - 1
_DASHES = "\0--"  # how argparse gets the value "--", which it would drop (3.11); no word of a command line holds a zero byte
_TRUTH = re.compile(r"(--[a-z0-9-]+)=(true|false)", re.IGNORECASE)


def do(config: Config, command: Command, words: Sequence[str]) -> int:
    """Read *words*, do the command, and return its exit code. Raises ConfigError for words that the parser does not know."""
    parser, action = command
    try:
        given = parser().read(list(words))
    except HelpShown:
        return 0
    return action(config, given)


class WrongOption(ConfigError):
    """An option is unknown or its value malformed; as in Docker, that has an exit code of its own."""

    exit_code = REFUSED


class HelpShown(Exception):
    """The help was asked for and has been printed."""


class _Place(NamedTuple):
    """A place for words that are no options: the name of the argument, and how the usage calls it."""

    name: str
    metavar: str
    is_needed: bool
    takes_all: bool


class _Help(argparse.RawDescriptionHelpFormatter):
    """Description and examples are printed as they are. argparse makes a formatter for each argument, also without help."""

    def __init__(self, prog: str, width: int = _HELP_COLUMNS) -> None:
        super().__init__(prog, width=width)


def _help_width() -> int:
    """As wide as the terminal, up to _HELP_COLUMNS."""
    import shutil  # 2 ms, only for help

    return min(shutil.get_terminal_size().columns - 2, _HELP_COLUMNS)


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
            exit_on_error=False,
        )
        self._options: dict[str, argparse.Action] = {}  # by each flag
        self._fields: list[str] = []
        self._places: list[_Place] = []
        self._ends_options = False
        self._add([*(["-h"] if short_help else []), "--help"], action="help", help="show this")

    def read(self, words: list[str]) -> Namespace:
        """Read *words* into a namespace; its ``asked`` holds the fields of the verb's request. Raises ConfigError, HelpShown.

        A field with a dot (``resolver.servers``) belongs to a struct within the request.
        """
        options, rest = self._split(words)
        try:
            given = self.parse_args(options)
        except argparse.ArgumentError as error:
            self.error(f"{max((error.argument_name or '').split('/'), key=len)}: {error.message}")
        for place in self._places:
            if not rest and place.is_needed:
                raise self._refusal(f"no {place.metavar.lower().replace('|', ' or ')} given")
            value: str | list[str] = rest if place.takes_all else rest[0] if rest else ""
            setattr(given, place.name, value)
            rest = [] if place.takes_all else rest[1:]
        if rest:
            raise self._refusal(
                f"{', '.join(map(repr, rest))}: too many arguments; leave {'it' if len(rest) == 1 else 'them'} out"
            )
        given.asked = self._asked(given)
        return given

    def _asked(self, given: Namespace) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        for field in self._fields:
            if (value := getattr(given, field)) is None:  # the option was not given: the request has its own default
                continue
            struct, _, name = field.rpartition(".")
            (asked.setdefault(struct, {}) if struct else asked)[name] = value
        return asked

    def format_help(self) -> str:
        import textwrap  # as argparse does it, only for help

        width = _help_width()
        self.formatter_class = partial(_Help, width=width)
        self.description = textwrap.fill(self.description or "", width, break_on_hyphens=False)
        if any((action.help or "").endswith(")") for action in self._options.values()):
            self._optionals.title = "options (the default in parentheses)"
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise self._refusal(message, WrongOption)

    def _refusal(self, message: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        return kind(f"{self.prog.removeprefix('netlib ')}: {message}; see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    # --- declaring arguments -------------------------------------------------------------------------------------------

    def switch(self, *flags: str, purpose: str, on: bool = False, field: str = "") -> None:
        """Add an option without a value; one that is *on* by default gets a ``--no-…`` too. *field* is one of the request's."""
        if on:
            self._add(flags, field, action=argparse.BooleanOptionalAction, default=True, help=purpose)
        else:
            self._add(flags, field, action="store_true", help=purpose)

    def value(self, *flags: str, purpose: str, metavar: str, default: str = "", field: str = "") -> None:
        """Add an option with one value."""
        self._add(flags, field, type=_text, default=default, metavar=metavar, help=purpose)

    def values(self, *flags: str, purpose: str, metavar: str, field: str = "") -> None:
        """Add an option that may be repeated."""
        self._add(flags, field, action="append", type=_text, default=[], metavar=metavar, help=purpose)

    def number(self, *flags: str, purpose: str, default: int = 0, field: str = "") -> None:
        """Add an option whose value is a whole number."""
        self._add(flags, field, type=_number, default=default, metavar="N", help=purpose)

    def seconds(self, *flags: str, purpose: str, field: str = "") -> None:
        """Add an option whose value is a number of seconds; None where it is not given."""
        self._add(flags, field, type=_seconds, metavar="SECONDS", help=purpose)

    def choice(self, *flags: str, purpose: str, choices: Sequence[str]) -> None:
        """Add an option whose value is one of *choices*; None where it is not given."""

        def chosen(value: str) -> str:
            text = _text(value)
            if text not in choices:
                raise argparse.ArgumentTypeError(f"{text!r} is not possible; choose {' or '.join(choices)}")
            return text

        self._add(flags, type=chosen, metavar=f"{{{','.join(choices)}}}", help=purpose)

    def format_option(self) -> None:
        """Add ``--format``, as ``template``."""
        self._add(["-f", "--format"], type=_text, dest="template", default="", metavar="FORMAT", help="json, or a template")

    def _add(self, flags: Sequence[str], field: str = "", **how: Any) -> None:
        if field:
            how["dest"] = field
            self._fields.append(field)
        action = self.add_argument(*flags, **how)
        self._options.update(dict.fromkeys(action.option_strings, action))

    def positional(self, name: str, metavar: str, *, is_needed: bool = True, field: bool = False) -> None:
        """Add one argument without a flag, "" where it is not given and not needed. It may be a *field* of the request."""
        self._places.append(_Place(name, metavar, is_needed, takes_all=False))
        self._fields += [name] if field else []

    def names(self, metavar: str) -> None:
        """Add one or more names, as ``names``."""
        self._places.append(_Place("names", metavar, is_needed=True, takes_all=True))

    def command_after(self, *names: str) -> None:
        """End the options at the first word that is none: *names* begin there, then the command with options of its own."""
        self._ends_options = True
        self._places += [_Place(name.lower(), name, is_needed=True, takes_all=False) for name in names]
        self._places.append(_Place("command", "COMMAND", is_needed=True, takes_all=True))

    # --- reading -------------------------------------------------------------------------------------------------------

    def _split(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Split *words* into options, spelled so that argparse takes any word as a value, and the other words.

        Where a command is wanted, options end at the first other word; elsewhere they may be anywhere.
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
            elif flag := self._flag_before_value(word):
                if at == len(words):
                    self.error(f"{flag} needs a value, {self._options[flag].metavar}, after it")
                if not word.startswith("--") and len(word) > 2:  # switches before it, as in -dp
                    options.append(word[:-1])
                options.append(f"{flag}={_for_argparse(words[at])}")
                at += 1
            else:
                self._check_known(word)
                truth = self._truth(word)
                options += truth if truth is not None else self._with_dashes(word) or [word]
        return options, others

    def _with_dashes(self, word: str) -> list[str]:
        """An option whose value is ``--`` in the same word (``--name=--``, ``-e--``), for argparse; empty for another."""
        flag, _, value = word.partition("=")
        if value == "--" and flag in self._options and self._options[flag].nargs != 0:
            return [f"{flag}={_DASHES}"]
        if not word.startswith("--") and word.endswith("--") and (flag := self._flag_before_value(word[:-2])):
            return [*([word[:-3]] if len(word) > 4 else []), f"{flag}={_DASHES}"]
        return []

    def _check_known(self, word: str) -> None:
        """Refuse an unknown option. Only its own word is named: the next one may be its value or not."""
        known = self._options
        if word.startswith("--"):
            flags = [word.partition("=")[0]]
        else:
            letters = [f"-{letter}" for letter in word[1:]]
            with_value = (at for at, flag in enumerate(letters, 1) if flag in known and known[flag].nargs != 0)
            flags = letters[: next(with_value, len(letters))]
        for flag in flags:
            if flag in known and word.startswith(f"{flag}=") and known[flag].nargs == 0 and self._truth(word) is None:
                self.error(f"{flag} takes no value but true or false, and {word.partition('=')[2]!r} is neither")
            if flag not in known:
                self.error(f"unknown option {flag}" + (f" in {word}" if len(flags) > 1 else ""))

    def _truth(self, word: str) -> list[str] | None:
        """Docker's ``--flag=true`` and ``--flag=false`` as argparse reads them; None for another word."""
        found = _TRUTH.fullmatch(word)
        action = self._options.get(found[1]) if found else None
        if not found or action is None or action.nargs != 0:
            return None
        if found[2].lower() == "true":
            return [found[1]]
        negative = f"--no-{found[1][2:]}"
        return [negative] if negative in action.option_strings else []

    def _flag_before_value(self, word: str) -> str:
        """The long flag of the option in *word* (the last one in ``-dp``) whose value is the next word; "" for none."""
        if word.startswith("--"):
            action = self._options.get(word)
            return word if action is not None and action.nargs != 0 else ""
        for at, letter in enumerate(word[1:], 2):
            action = self._options.get(f"-{letter}")
            if action is not None and action.nargs != 0:
                return max(action.option_strings, key=len) if at == len(word) else ""
        return ""


def environment(items: Sequence[str], files: Sequence[str], inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``--env-file`` and then of ``-e``; a ``NAME`` alone takes its value in *inherited*, or is left out.

    Raises ConfigError for a variable without a name, and for a file that cannot be read.
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


def _for_argparse(value: str) -> str:
    return _DASHES if value == "--" else value


def _text(value: str) -> str:
    return "--" if value == _DASHES else value


def _number(value: str) -> int:
    text = _text(value)
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not -_HIGHEST_NUMBER <= number <= _HIGHEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is beyond {_HIGHEST_NUMBER}")
    return number


def _seconds(value: str) -> float:
    text = _text(value)
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; give seconds from 0 on")
    return seconds
