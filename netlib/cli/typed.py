"""Typer, for the commands that use it: how they are made, run, and told the host's folders."""

import re
from collections.abc import Sequence
from typing import Any

import typer
from typer.main import get_command

from netlib.config import Config
from netlib.errors import ConfigError

_TRUTHS = re.compile(r"(--[a-z0-9-]+)=(true|false)")
_ON_BY_DEFAULT = ("--ipv4",)


def application(purpose: str) -> typer.Typer:
    """A typer application without typer's own colours, tracebacks and completion."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["--help", "-h"]})
    app.callback(help=purpose)(_group)
    return app


def run(app: typer.Typer, name: str, arguments: Sequence[str], config: Config) -> int:
    """Run *app* and return its exit code; raises ConfigError, one sentence, for arguments that it does not understand."""
    try:
        code = get_command(app).main(_booleans(arguments) or ["--help"], prog_name=name, obj=config, standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else name
        message = error.format_message().rstrip(".")
        raise ConfigError(f"{message[:1].lower()}{message[1:]}; see `{path} --help`") from error
    return code if isinstance(code, int) else 0


def config_of(ctx: typer.Context) -> Config:
    """The folders that :func:`run` was given."""
    config: Config = ctx.obj
    return config


def several(*flags: str, metavar: str, purpose: str) -> Any:
    """An option that may be repeated."""
    return typer.Option(*flags, metavar=metavar, default_factory=list, show_default=False, help=purpose)


def examples(*lines: str) -> str:
    """The end of a help text: *lines* as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _group() -> None:
    """Makes an application with a single command a group all the same."""


def _booleans(arguments: Sequence[str]) -> list[str]:
    """Docker's ``--flag=true`` and ``--flag=false`` as typer reads them."""
    words: list[str] = []
    for word in arguments:
        found = _TRUTHS.fullmatch(word)
        if not found:
            words.append(word)
        elif found[2] == "true":
            words.append(found[1])
        elif found[1] in _ON_BY_DEFAULT:
            words.append(found[1].replace("--", "--no-", 1))
    return words
