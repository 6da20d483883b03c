"""A host that has run out of something: failures of every kind that mean it, told apart from all others, in one sentence.

One rule: what is scarce is named with the limit that may be meant, for a control group or a user may have less than the host.
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
_NO_EXCEPTION = "error return without exception set"  # the interpreter lacks the memory for its own one; others are defects
_NO_MAPPING = "failed to map segment"  # nor the dynamic linker for a library that memory is lacking for


def exhaustion(error: BaseException) -> HostExhausted | None:
    """What *error* says of the host; None for one that has another reason."""
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
    # Of what may be tried again later, only a full output that does not block says how much of it was written.
    if error.errno == errno.EAGAIN and not hasattr(error, "characters_written"):
        return HostExhausted(NO_PROCESS)
    return None


@contextmanager
def translated_scarcity() -> Iterator[None]:
    """Raise HostExhausted for what the block raises because the host has run out of something."""
    try:
        yield
    except Exception as error:
        scarce = exhaustion(error)
        if scarce is None:
            raise
        raise scarce from error
