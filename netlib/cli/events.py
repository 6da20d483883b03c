"""``netlib events``: print the events of networks and containers as they happen, one JSON object on each line.

The command reads the events from the journal in the store, so it needs no netlibd.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netlib.cli.arguments import Parser
from netlib.cli.outcome import only_watching
from netlib.config import Config
from netlib.errors import ConfigError

_NANO = 1_000_000_000


def events_parser() -> Parser:
    """Return the parser of the arguments of ``events``."""
    parser = Parser(
        "events",
        "Show what happens to networks and containers, as it happens, one JSON object a line.",
        "",
        "--since 10m --until 0s --filter type=network",
        "--filter event=die --filter container=web --format '{{.Actor.Attributes.name}}: {{.Actor.Attributes.exitCode}}'",
        usage="[--since TIME] [--until TIME] [-f KEY=VALUE] [--format FORMAT]",
    )
    parser.values("-f", "--filter", metavar="KEY=VALUE", purpose="container, event, id, label, network, sandbox, type")
    parser.value("--since", metavar="TIME", purpose="from a time like 2024-05-01T10:00:00, or from so long ago: 10m (now)")
    parser.value("--until", metavar="TIME", purpose="up to a time, or so long ago; 0s: what there is (for ever)")
    parser.value("--format", metavar="FORMAT", default="json", purpose="json, or a template like '{{.Action}}'")
    return parser


@only_watching
def events(config: Config, given: Namespace) -> int:
    """Print events until the time of ``--until``, or until a signal ends the command."""
    from netlib.cli.template import Template
    from netlib.core.controller import Controller, Unwatched
    from netlib.kernel.scarcity import translated_scarcity
    from netlib.runtime.logs import parse_moment

    wanted, now = _filters(given.filter), time.time()
    if given.format.partition(" ")[0] == "table":
        raise ConfigError("events has no table, for it prints each event when it happens; pass --format json, or a template")
    template = None if given.format == "json" else Template(given.format)
    since = parse_moment(given.since, now) if given.since else None
    until = parse_moment(given.until, now, "--until") if given.until else None
    with translated_scarcity(), Controller(config, watcher=Unwatched()) as controller:
        controller.tell_fault()
        for item in controller.events(since=since, until=until, follow=until is None or until > now):
            row = event_row(item.event, item.time)
            if all(any(_PASSES[key](row, value) for value in values) for key, values in wanted.items()):
                sys.stdout.write((json.dumps(row) if template is None else template.render(row)) + "\n")
                sys.stdout.flush()
    return 0


def event_row(event: Any, moment: float) -> dict[str, Any]:
    """Return an event (:class:`netlib.model.Event`) in the form of Docker's API."""
    from netlib.cli.template import FreeTexts

    return {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": FreeTexts(event.attributes)},
        "scope": "local",
        "time": int(moment),
        "timeNano": int(moment * _NANO),
    }


def _named(kind: str) -> Callable[[Mapping[str, Any], str], bool]:
    """Return a filter for events of a record of *kind*, or with such a record among their attributes, by its name or id."""

    def passes(row: Mapping[str, Any], value: str) -> bool:
        actor, attributes = row["Actor"], row["Actor"]["Attributes"]
        is_its_own = row["Type"] == kind
        names = (actor["ID"], attributes.get("name")) if is_its_own else (attributes.get(kind), attributes.get(f"{kind}Name"))
        return value in names or bool(names[0] and names[0].startswith(value))

    return passes


def _has_label(row: Mapping[str, Any], value: str) -> bool:
    key, equals, wanted = value.partition("=")
    attributes = row["Actor"]["Attributes"]
    return key in attributes and (not equals or attributes[key] == wanted)


_PASSES: dict[str, Callable[[Mapping[str, Any], str], bool]] = {
    "container": _named("container"),
    "event": lambda row, value: row["Action"] == value,
    "id": lambda row, value: row["Actor"]["ID"].startswith(value),
    "label": _has_label,
    "network": _named("network"),
    "sandbox": _named("sandbox"),
    "type": lambda row, value: row["Type"] == value,
}


def _filters(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read ``KEY=VALUE`` filters into values by key; an event passes if it has any of a key's values, as with Docker."""
    found: dict[str, list[str]] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in _PASSES or not value:  # an empty one would be the beginning of every name
            raise ConfigError(
                f"filter {text!r} is not understood; write KEY=VALUE, the key one of {', '.join(sorted(_PASSES))}"
            )
        found.setdefault(key, []).append(value)
    return found
