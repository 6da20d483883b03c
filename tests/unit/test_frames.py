"""Frames out of a stream: the same bodies however it was cut, and nothing of the next frame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlib.wire.frames import Frames, FrameTooLong
from netlib.wire.protocol import LENGTH

MOST = 64


def framed(*bodies: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(body)) + body for body in bodies)


@given(st.lists(st.binary(max_size=MOST), max_size=5), st.lists(st.integers(1, 30), min_size=1))
def test_any_pieces_make_the_same_frames(bodies: list[bytes], pieces: list[int]) -> None:
    stream, frames, found, turn = framed(*bodies), Frames(MOST), [], 0
    while stream:
        size = pieces[turn % len(pieces)]
        frames.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
        while (body := frames.take()) is not None:
            found.append(body)
    assert found == bodies
    assert not frames


@given(st.binary(max_size=MOST), st.binary(max_size=MOST))
def test_who_reads_what_is_missing_reads_no_further(first: bytes, second: bytes) -> None:
    stream, frames = framed(first, second), Frames(MOST)
    while missing := frames.missing:
        frames.feed(stream[:missing])
        stream = stream[missing:]
    assert (frames.take(), stream) == (first, framed(second))


def test_a_long_frame_is_refused_by_its_length_alone() -> None:
    frames = Frames(MOST)
    frames.feed(framed(b"a")[:3])
    with pytest.raises(FrameTooLong) as caught:
        Frames(MOST).feed(LENGTH.pack(MOST + 1))
    assert caught.value.size == MOST + 1
    frames.feed(framed(b"a")[3:])
    assert frames.take() == b"a"
    frames.feed(framed(b"b") + LENGTH.pack(MOST + 1))
    with pytest.raises(FrameTooLong):
        frames.take()
