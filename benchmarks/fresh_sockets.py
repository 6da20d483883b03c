"""Ask a name server from a fresh socket for every query, as each process that resolves a name does.

Run as a script inside the netns to ask from: ``python -IS fresh_sockets.py SERVER QUERIES NAME …``; prints answers per second.
Several queries are under way at once, so that it is the server that is measured and not the turns between the two.
"""

import itertools
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence

PROCESSES = 2  # one alone is slower than either resolver, and would measure itself
_UNDER_WAY = 32
_DEADLINE_SECONDS = 30  # a timeout of each socket would be two more system calls a query
_HEADER = struct.Struct("!HHHHHH")


def queries(names: Sequence[str]) -> Iterator[bytes]:
    """Questions for the A records of *names*, over and over, each with another id."""
    bodies = [b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) for name in names]
    for number in itertools.count():
        yield _HEADER.pack(number & 0xFFFF, 0x0100, 1, 0, 0, 0) + bodies[number % len(bodies)] + b"\0\0\1\0\1"


def ask(server: str, number: int, names: Sequence[str]) -> float:
    """Ask *number* questions, each from a socket of its own; return answers per second. Raises OSError when one is wrong."""
    questions = queries(names)
    started = time.perf_counter()
    for _ in range(0, number, _UNDER_WAY):
        asked: list[tuple[socket.socket, bytes]] = []
        try:
            for question in itertools.islice(questions, _UNDER_WAY):
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
    rounds = -(-number // _UNDER_WAY)
    return rounds * _UNDER_WAY / (time.perf_counter() - started)


if __name__ == "__main__":
    signal.alarm(_DEADLINE_SECONDS)  # ends this process when an answer is lost
    print(ask(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
