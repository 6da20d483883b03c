"""Notices: sentences that a person should read besides an answer or an error, each shown once in the life of a process.

A Python program gets them as warnings. The command line and the launchers show them in ways of their own (:func:`shown_by`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["notice", "shown_by"]


def _as_warning(sentence: str) -> None:
    import warnings

    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


_way: Callable[[str], None] = _as_warning
_shown: set[str] = set()


@contextmanager
def shown_by(way: Callable[[str], None]) -> Iterator[None]:
    """Have *way* show the notices of the block."""
    global _way
    former, _way = _way, way
    try:
        yield
    finally:
        _way = former


def notice(sentence: str) -> None:
    """Show *sentence*, unless this process has shown it before."""
    if sentence not in _shown:
        _shown.add(sentence)
        _way(sentence)
