"""The keys that leave a container's terminal: how they are written, and how they are found among those pressed."""

import pytest

from netlib.errors import ConfigError
from netlib.runtime.attach import parse_detach_keys
from netlib.runtime.terminal import DetachKeys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", b"\x10\x11"),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_,ctrl-a,ctrl-z", b"\0\x1b\x1c\x1d\x1e\x1f\x01\x1a"),
        ("DEL,A", b"\x7fA"),
    ],
)
def test_keys_as_docker_writes_them(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-P", "ctrl-1", "control-p", "a,", ",", "ab", "ä", "ctrl-ä"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no key; write keys like"):
        parse_detach_keys(text)


@pytest.mark.parametrize(
    ("pressed", "passed", "left"),
    [
        ([b"abc"], b"abc", False),
        ([b"ab\x10\x11cd"], b"ab", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"a\x10"], b"a", False),
        ([b"a\x10", b"b"], b"a\x10b", False),
        ([b"\x10", b"\x10", b"\x11"], b"\x10\x10\x11", False),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_what_may_be_their_beginning_is_held_back(pressed: list[bytes], passed: bytes, left: bool) -> None:
    keys = DetachKeys(b"\x10\x11")
    taken = [keys.take(data) for data in pressed]
    assert (b"".join(data for data, _ in taken), taken[-1][1]) == (passed, left)


def test_without_keys_everything_passes() -> None:
    assert DetachKeys(b"").take(b"\x10\x11") == (b"\x10\x11", False)
