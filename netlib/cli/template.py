"""Docker's ``--format`` templates: the part of Go's ``text/template`` that people type.

Fields ``{{.Name}}``; functions ``json len index print println lower upper``; ``{{range .X}}…{{else}}…{{end}}``, with or without
``$key, $value :=``; ``{{if .X}}`` and ``{{with .X}}`` likewise; ``-`` to trim white space. All else is refused by name.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from netlib.errors import ConfigError

_ACTION = re.compile(r"(\s*)\{\{-\s|\{\{", re.ASCII)
_TOKEN = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|`[^`]*`|\$\w*(?:\.\w+)*|(?:\.[\w-]+)+|\.|:=|,|\||-?\d+|\w+)""")
_ESCAPES = {"\\t": "\t", "\\n": "\n"}
_BLOCKS = ("range", "if", "with")


class _Block(NamedTuple):
    keyword: str
    words: Sequence[str]
    body: "list[str | _Block]"
    otherwise: "list[str | _Block]"


class Template:
    """A template, parsed once and rendered for each item."""

    def __init__(self, text: str) -> None:
        """Raises ConfigError for what is no template of the subset."""
        self.text = text
        for escaped, plain in _ESCAPES.items():
            text = text.replace(escaped, plain)
        parts = iter(_split(text))
        self._body, closed = self._parse(parts)
        if closed:
            raise self._refusal("an {{end}} or {{else}} without a beginning")

    def render(self, item: Any) -> str:
        """The text for *item* (dicts, lists, strings, numbers); ConfigError when it has no such field."""
        return self._render(self._body, item, {"$": item})

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(f"--format {self.text!r}: {reason}")

    def _parse(self, parts: "Iterator[tuple[bool, str]]") -> tuple[list[str | _Block], str]:
        """Read up to the matching {{end}} or {{else}}; answer with what was read and which of them it was."""
        body: list[str | _Block] = []
        for is_action, text in parts:
            if not is_action:
                body.append(text)
                continue
            words = self._words(text)
            if words[0] in ("end", "else") and len(words) == 1:
                return body, words[0]
            if words[0] not in _BLOCKS:
                body.append(_Block("", words, [], []))
                continue
            inner, closed = self._parse(parts)
            otherwise: list[str | _Block] = []
            if closed == "else":
                otherwise, closed = self._parse(parts)
            if closed != "end":
                raise self._refusal(f"{{{{{words[0]} …}}}} lacks its {{{{end}}}}")
            body.append(_Block(words[0], words[1:], inner, otherwise))
        return body, ""

    def _words(self, text: str) -> list[str]:
        words, at = [], 0
        text = text.strip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._refusal(f"cannot read {text[at:]!r}")
            words.append(found[1])
            at = found.end()
        if not words:
            raise self._refusal("{{}} is empty")
        return words

    def _render(self, body: "list[str | _Block]", dot: Any, names: dict[str, Any]) -> str:
        return "".join(part if isinstance(part, str) else self._render_block(part, dot, names) for part in body)

    def _render_block(self, block: _Block, dot: Any, names: dict[str, Any]) -> str:
        words = list(block.words)
        variables: list[str] = []
        if ":=" in words:
            split = words.index(":=")
            variables, words = [word for word in words[:split] if word != ","], words[split + 1 :]
        value = self._evaluate(words, dot, names)
        if not block.keyword:
            return _shown(value)
        if not value:
            return self._render(block.otherwise, dot, names)
        if block.keyword == "if":
            return self._render(block.body, dot, names)
        if block.keyword == "with":
            return self._render(block.body, value, names)
        if not isinstance(value, dict | list):
            raise self._refusal(f"range over {_shown(value)!r}, which is no list")
        pairs = sorted(value.items()) if isinstance(value, dict) else list(enumerate(value))
        named = [dict(zip(reversed(variables), (item, key), strict=False)) for key, item in pairs]
        return "".join(self._render(block.body, item, names | known) for (_, item), known in zip(pairs, named, strict=True))

    def _evaluate(self, words: Sequence[str], dot: Any, names: dict[str, Any]) -> Any:
        first, *rest = words
        if first in ("json", "len", "index", "println", "print", "lower", "upper"):
            return self._call(first, [self._operand(word, dot, names) for word in rest])
        if rest:
            raise self._refusal(f"unknown function {first!r}; there are: json len index print println lower upper")
        return self._operand(first, dot, names)

    def _call(self, function: str, values: list[Any]) -> Any:
        if not values:
            raise self._refusal(f"{function} lacks its argument")
        if function == "json":
            return json.dumps(values[0])
        if function == "len":
            return len(values[0])
        if function in ("print", "println"):
            return " ".join(map(_shown, values)) + ("\n" if function == "println" else "")
        if function in ("lower", "upper"):
            return str(getattr(_shown(values[0]), function)())
        found = values[0]
        for key in values[1:]:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                raise self._refusal(f"there is no {key!r} to index") from None
        return found

    def _operand(self, word: str, dot: Any, names: dict[str, Any]) -> Any:
        if word[0] in '"`':
            return word[1:-1]
        if word.lstrip("-").isdigit():
            return int(word)
        name, *fields = word.split(".")
        if not name:
            value = dot
        elif name in names:
            value = names[name]
        else:
            raise self._refusal(f"unknown name {name!r}")
        for field in filter(None, fields):
            if not isinstance(value, dict) or field not in value:
                known = ", ".join(value) if isinstance(value, dict) else "none"
                raise self._refusal(f"there is no field {field!r}; there are: {known}")
            value = value[field]
        return value


def _split(text: str) -> Iterator[tuple[bool, str]]:
    """Cut into (False, text) and (True, inside of {{…}}), with ``{{- `` and `` -}}`` trimming their sides."""
    at = 0
    for opening in _ACTION.finditer(text):
        if opening.start() < at:
            continue
        end = text.find("}}", opening.end())
        if end < 0:
            raise ConfigError(f"--format {text!r}: {{{{ without }}}}")
        yield False, text[at : opening.start()] if opening[1] is not None else text[at : opening.end() - 2]
        inside, at = text[opening.end() : end], end + 2
        if inside.endswith(" -"):
            inside = inside[:-2]
            at += len(text[at:]) - len(text[at:].lstrip())
        yield True, inside
    yield False, text[at:]


def _shown(value: Any) -> str:
    """A value as Go prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_shown(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(map(_shown, value)) + "]"
    return str(value)
