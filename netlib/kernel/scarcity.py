"""A host without memory or processes left: the failures that mean it are told from all others, and said in one sentence.

One rule: the sentence names the limits that may be the cause, for a control group or a user may have less than the host.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from netlib.errors import HostExhausted

__all__ = ["NO_MEMORY", "NO_PROCESS", "exhaustion", "translated_scarcity"]

NO_MEMORY = (
    "too little memory is left for this; free some, or raise the limit of memory (ulimit -v, the control group's), "
    "and try again"
)
NO_PROCESS = (
    "no more processes can be made; end some, or raise their limit (ulimit -u, pids.max of the control group), free memory, "
    "and try again"
)


_NO_THREAD = "can't start new thread"  # Python has no class and no number for it
_NO_EXCEPTION = (
    "error return without exception set"  # the interpreter had no memory to make an exception; other SystemErrors are defects
)
_NO_MAPPING = "failed to map segment"  # by the dynamic linker, without memory for a library


def exhaustion(error: BaseException) -> HostExhausted | None:
    """HostExhausted for an *error* that means too little memory or too few processes; None for any other."""
    if isinstance(error, HostExhausted):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, ImportError | OSError) and _NO_MAPPING in str(error)):
        return HostExhausted(NO_MEMORY)
    if isinstance(error, SystemError) and str(error) == _NO_EXCEPTION:
        return HostExhausted(NO_MEMORY)
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return HostExhausted(NO_PROCESS)
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOMEM:
        return HostExhausted(NO_MEMORY)
    # EAGAIN is a limit of processes, unless it says how much was written: that is a non-blocking output which is full.
    if error.errno == errno.EAGAIN and not hasattr(error, "characters_written"):
        return HostExhausted(NO_PROCESS)
    return None


@contextmanager
def translated_scarcity() -> Iterator[None]:
    """Raise HostExhausted in the place of an error by which the host lacks memory or processes."""
    try:
        yield
    except Exception as error:
        scarce = exhaustion(error)
        if scarce is None:
            raise
        raise scarce from error
