"""What a person should know besides an answer or an error: sentences, each shown once in the life of a process.

A Python program gets them as warnings. A command line, or a launcher, brings its own way (:func:`show_by`).
"""

from collections.abc import Callable

__all__ = ["notice", "show_by"]


def _as_warning(sentence: str) -> None:
    import warnings

    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


_way: Callable[[str], None] = _as_warning
_shown: set[str] = set()


def show_by(way: Callable[[str], None]) -> None:
    """Have *way* show every notice of this process."""
    global _way
    _way = way


def notice(sentence: str) -> None:
    """Show *sentence*, unless that was done."""
    if sentence not in _shown:
        _shown.add(sentence)
        _way(sentence)
