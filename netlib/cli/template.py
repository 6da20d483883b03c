"""Docker's ``--format`` templates: the part of Go's ``text/template`` that is used with Docker.

Fields ``{{.Name}}``; functions ``json len index print println lower upper``, also as ``{{.Name | upper}}``; parentheses;
``{{range .X}}…{{else}}…{{end}}``, with or without ``$key, $value :=``; ``{{if .X}}`` and ``{{with .X}}`` likewise; ``-`` to
trim white space. Anything else is refused by name.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from netlib.errors import ConfigError

_ACTION = re.compile(r"(\s*)\{\{-\s|\{\{", re.ASCII)
_TOKEN = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|`[^`]*`|\$\w*(?:\.\w+)*|(?:\.[\w-]+)+|\.|:=|,|\||\(|\)(?:\.[\w-]+)*|-?\d+|\w+)""")
_ESCAPES = {"\\t": "\t", "\\n": "\n"}
_BLOCKS = ("range", "if", "with")
_FUNCTIONS = ("json", "len", "index", "println", "print", "lower", "upper")


class _Block(NamedTuple):
    keyword: str
    words: Sequence[str]
    body: "list[str | _Block]"
    otherwise: "list[str | _Block]"


class Template:
    """A template, parsed once and rendered for each item."""

    def __init__(self, text: str) -> None:
        """Raises ConfigError for a text that is no template of this part."""
        self.text = text
        for escaped, plain in _ESCAPES.items():
            text = text.replace(escaped, plain)
        parts = iter(_split(text))
        self._body, closed = self._parse(parts)
        if closed:
            word = f"{{{{{closed}}}}}"
            raise self._refusal(
                f"{word} has no {{{{range}}}}, {{{{if}}}} or {{{{with}}}} before it; add that, or leave {word} out"
            )

    def render(self, item: Any) -> str:
        """The text for *item* (dicts, lists, strings, numbers); ConfigError when it has no such field."""
        return self._render(self._body, item, {"$": item})

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(f"--format {self.text!r}: {reason}")

    def _parse(self, parts: "Iterator[tuple[bool, str]]") -> tuple[list[str | _Block], str]:
        """Read up to the matching {{end}} or {{else}}; return what was read and the word that ended it, "" for none."""
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
                raise self._refusal(f"{{{{{words[0]} …}}}} has no {{{{end}}}}; add one after what belongs to it")
            body.append(_Block(words[0], words[1:], inner, otherwise))
        return body, ""

    def _words(self, text: str) -> list[str]:
        words, at = [], 0
        text = text.strip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._refusal(
                    f"cannot read {text[at:]!r} in {{{{{text}}}}}; write a field like .Name, or a function and its arguments"
                )
            words.append(found[1])
            at = found.end()
        if not words:
            raise self._refusal("{{}} is empty; write a field into it, like {{.Name}}")
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
            raise self._refusal(f"{{{{range}}}} over {_shown(value)!r}, which is no list and no object; choose another field")
        pairs = sorted(value.items()) if isinstance(value, dict) else list(enumerate(value))
        named = [dict(zip(reversed(variables), (item, key), strict=False)) for key, item in pairs]
        return "".join(self._render(block.body, item, names | known) for (_, item), known in zip(pairs, named, strict=True))

    def _evaluate(self, words: Sequence[str], dot: Any, names: dict[str, Any]) -> Any:
        """The value of a pipeline."""
        left = list(words)
        value = self._pipeline(left, dot, names)
        if left:
            raise self._refusal("there is a closing parenthesis without an opening one; add that, or leave it out")
        return value

    def _pipeline(self, words: list[str], dot: Any, names: dict[str, Any]) -> Any:
        """Remove a pipeline from *words*, up to their end or to a closing parenthesis, and return its value."""
        piped: list[Any] = []
        while True:
            function = words.pop(0) if words and words[0] in _FUNCTIONS else ""
            values: list[Any] = []
            while words and words[0] != "|" and words[0][0] != ")":
                values.append(self._term(words, dot, names))
            values += piped
            if function:
                value = self._call(function, values)
            elif len(values) != 1:
                raise self._refusal(f"there must be one value, or a function first; functions are: {' '.join(_FUNCTIONS)}")
            else:
                value = values[0]
            if not words or words[0] != "|":
                return value
            words.pop(0)
            piped = [value]

    def _term(self, words: list[str], dot: Any, names: dict[str, Any]) -> Any:
        word = words.pop(0)
        if word != "(":
            return self._operand(word, dot, names)
        value = self._pipeline(words, dot, names)
        if not words:
            raise self._refusal("there is an opening parenthesis without a closing one; add that, or leave it out")
        return self._fields(value, words.pop(0)[1:])

    def _call(self, function: str, values: list[Any]) -> Any:
        if not values:
            raise self._refusal(f"{function} has no argument; write one, like {{{{{function} .Name}}}}")
        first = values[0]
        if function == "json":
            return json.dumps(first)
        if function == "len":
            if not isinstance(first, str | list | dict):
                raise self._refusal(f"len: {_shown(first)!r} has no length; choose a text, a list or an object")
            return len(first)
        if function in ("print", "println"):
            return " ".join(map(_shown, values)) + ("\n" if function == "println" else "")
        if function in ("lower", "upper"):
            return str(getattr(_shown(first), function)())
        for key in values[1:]:
            try:
                first = first[key]
            except (KeyError, IndexError, TypeError):
                raise self._refusal(f"index: there is no {key!r}; there are: {_keys_of(first)}") from None
        return first

    def _operand(self, word: str, dot: Any, names: dict[str, Any]) -> Any:
        if word[0] in '"`':
            return word[1:-1]
        if word.lstrip("-").isdigit():
            return int(word)
        name, _, fields = word.partition(".")
        if name and name not in names:
            raise self._refusal(f"unknown word {name!r}; functions are: {' '.join(_FUNCTIONS)}")
        return self._fields(names[name] if name else dot, fields)

    def _fields(self, value: Any, fields: str) -> Any:
        """Follow a dotted path of *fields* from *value*."""
        for field in filter(None, fields.split(".")):
            if isinstance(value, FreeTexts):
                value = value.get(field, "")
                continue
            if not isinstance(value, dict) or field not in value:
                known = _keys_of(value) if isinstance(value, dict) else "none"
                raise self._refusal(f"there is no field {field!r}; there are: {known}")
            value = value[field]
        return value


class FreeTexts(dict[str, str]):
    """Texts by names that each row chooses, such as an event's attributes: one that a row lacks is empty, as in Go's maps."""


def _split(text: str) -> Iterator[tuple[bool, str]]:
    """Split *text* into (False, text) and (True, inside of {{…}}); ``{{- `` and `` -}}`` trim the text beside them."""
    at = 0
    for opening in _ACTION.finditer(text):
        if opening.start() < at:
            continue
        end = text.find("}}", opening.end())
        if end < 0:
            raise ConfigError(f"--format {text!r}: a {{{{ has no }}}} after it; close it")
        yield False, text[at : opening.start()] if opening[1] is not None else text[at : opening.end() - 2]
        inside, at = text[opening.end() : end], end + 2
        if inside.endswith(" -"):
            inside = inside[:-2]
            at += len(text[at:]) - len(text[at:].lstrip())
        yield True, inside
    yield False, text[at:]


def _keys_of(value: Any) -> str:
    """What *value* can be indexed by, for an error: names, numbers, or "none"."""
    if isinstance(value, list):
        return f"0 to {len(value) - 1}" if value else "none"
    return ", ".join(value) if isinstance(value, dict) and value else "none"


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
