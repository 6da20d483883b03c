"""Which errors say that the host has run out of something, and which are defects."""

import errno

import pytest

from netlib.errors import HostExhausted
from netlib.kernel.scarcity import NO_MEMORY, NO_PROCESS, exhaustion, translated_scarcity


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), NO_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), NO_MEMORY),
        (SystemError("error return without exception set"), NO_MEMORY),
        (ImportError("libsqlite3.so.0: failed to map segment from shared object"), NO_MEMORY),
        (RuntimeError("can't start new thread"), NO_PROCESS),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), NO_PROCESS),
    ],
)
def test_scarcity(error: Exception, sentence: str) -> None:
    assert str(exhaustion(error)) == sentence
    with pytest.raises(HostExhausted, match="^too little memory|^no more processes"), translated_scarcity():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        SystemError("<built-in function setns> returned a result with an exception set"),
        SystemError("<class 'msgspec.Struct'> returned NULL without setting an exception"),
        SystemError("Negative size passed to PyBytes_FromStringAndSize"),
        RuntimeError("generator didn't stop"),
        ImportError("No module named 'netlib.nothing'"),
        OSError(errno.ENOENT, "No such file or directory"),
        BlockingIOError(errno.EAGAIN, "write could not complete without blocking", 0),
    ],
)
def test_a_defect_is_none(error: Exception) -> None:
    assert exhaustion(error) is None
    with pytest.raises(type(error)) as raised, translated_scarcity():
        raise error
    assert raised.value is error
