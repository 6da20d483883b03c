"""Notices: sentences that a person should read besides an answer or an error, each shown once in the life of a process.

A Python program gets them as warnings. The command line, the launchers and netlibd, which sends them to its callers, have ways
of their own (:func:`shown_by`), each for one thread; there, each notice is shown once in a block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

__all__ = ["notice", "shown_by"]


class _Way(NamedTuple):
    show: Callable[[str], None]
    shown: set[str]


def _as_warning(sentence: str) -> None:
    import warnings

    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


_shown: set[str] = set()
_way: ContextVar[_Way | None] = ContextVar("way", default=None)


@contextmanager
def shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Have *show* show the notices of the block, in this thread."""
    former = _way.set(_Way(show, set()))
    try:
        yield
    finally:
        _way.reset(former)


def notice(sentence: str, *, subject: str = "") -> None:
    """Show *sentence*, unless it was shown before, or another one on the same *subject*."""
    way = _way.get() or _Way(_as_warning, _shown)
    known = subject or sentence
    if known not in way.shown:
        way.shown.add(known)
        way.show(sentence)
