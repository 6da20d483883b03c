"""Query a name server from a new socket for each query, as processes that resolve one name do.

A script that is run inside a netns: ``python -IS fresh_sockets.py SERVER QUERIES NAME …``. It prints the answers per second. It
has several queries open at a time, so that it measures the server and not the switches between the two processes.
"""

import itertools
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence

PROCESSES = 2  # one process alone is slower than both resolvers
_OPEN_AT_ONCE = 32
_DEADLINE_SECONDS = 30  # of the whole run, because a timeout for each socket would be two more system calls per query
_HEADER = struct.Struct("!HHHHHH")


def queries(names: Sequence[str]) -> Iterator[bytes]:
    """Yield queries for the A records of *names* in turn, without an end, each with another id."""
    bodies = [b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) for name in names]
    for number in itertools.count():
        yield _HEADER.pack(number & 0xFFFF, 0x0100, 1, 0, 0, 0) + bodies[number % len(bodies)] + b"\0\0\1\0\1"


def ask(server: str, number: int, names: Sequence[str]) -> float:
    """Send *number* queries, each from a new socket, and return the answers per second. Raises OSError for a wrong answer."""
    questions = queries(names)
    started = time.perf_counter()
    for _ in range(0, number, _OPEN_AT_ONCE):
        asked: list[tuple[socket.socket, bytes]] = []
        try:
            for question in itertools.islice(questions, _OPEN_AT_ONCE):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                asked.append((sock, question))
                sock.connect((server, 53))
                sock.send(question)
            for sock, question in asked:
                answer = sock.recv(512)
                if answer[:2] != question[:2] or answer[3] & 0xF or answer[6:8] == b"\0\0":
                    raise OSError(f"no answer to the question asked: {answer!r}")
        finally:
            for sock, _ in asked:
                sock.close()
    rounds = -(-number // _OPEN_AT_ONCE)
    return rounds * _OPEN_AT_ONCE / (time.perf_counter() - started)


if __name__ == "__main__":
    signal.alarm(_DEADLINE_SECONDS)  # ends this process when an answer is lost
    print(ask(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
