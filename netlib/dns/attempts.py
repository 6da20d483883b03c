"""One attempt: a question sent to one server upstream, by UDP or TCP, from a socket of its own.

A forger cannot guess the id, the port and the case of the letters (:mod:`netlib.dns.spelling`). A message is an answer only if
it is from the server that was asked, with that id and that question in that spelling.
"""

import os
import socket
from contextlib import suppress
from typing import Protocol

from netlib.dns.loop import READABLE, WRITABLE, Loop
from netlib.dns.message import HEADER_SIZE, MAX_MESSAGE, Query
from netlib.dns.spelling import Verdict, judge, mixed
from netlib.dns.turns import Party
from netlib.kernel.descriptors import lifted
from netlib.model import IPAddress

__all__ = ["Attempt", "StreamAttempt"]

PORT = 53
_ANSWERS_PER_WAKE = 16
_LENGTH_SIZE = 2


class Question(Protocol):
    """The question that an attempt belongs to, and the methods by which the attempt reports."""

    loop: Loop
    party: Party
    query: Query
    body: bytes  # what follows the id

    def on_answer(self, attempt: "Attempt", response: bytes) -> None: ...
    def on_folded(self, attempt: "Attempt", response: bytes) -> None: ...
    def on_failure(self, attempt: "Attempt") -> None: ...
    def on_forgery(self) -> None: ...


class Attempt:
    """An attempt by UDP. The kernel chooses the port, and drops messages from other sources than the server."""

    kind = socket.SOCK_DGRAM

    def __init__(self, question: Question, server: IPAddress, *, mixing: bool) -> None:
        """Ask *server*, *mixing* the letters' case or not. Raises OSError where that is impossible, and leaves nothing open."""
        self.server = server
        section = mixed(question.query.question) if mixing else question.query.question
        self._question = question
        start, end = HEADER_SIZE - 2, HEADER_SIZE - 2 + len(section)
        self.message = os.urandom(2) + question.body[:start] + section + question.body[end:]
        self.is_doubted = False  # there was an answer in another spelling
        self.resolves_doubt = False  # made because of such an answer to an earlier attempt
        self._mixing = mixing  # if not, an answer in any spelling is accepted
        family = socket.AF_INET if server.version == 4 else socket.AF_INET6
        self.sock = lifted(socket.socket(family, self.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
        try:
            self._start()
        except BaseException:
            self.sock.close()
            raise

    def _start(self) -> None:
        self.sock.connect(_socket_address(self.server))
        self.sock.send(self.message)
        self._watch(READABLE)

    def _watch(self, events: int) -> None:
        self._question.loop.watch(self.sock.fileno(), self._on_ready, events, self._question.party)

    def repeat(self) -> None:
        """Send the message again with the same id and port, so that an answer to either counts."""
        try:
            self.sock.send(self.message)
        except OSError:
            self._question.on_failure(self)

    def close(self) -> None:
        self._question.loop.forget(self.sock.fileno())
        self.sock.close()

    def _on_ready(self, events: int) -> None:
        try:
            for _ in range(_ANSWERS_PER_WAKE):
                if self._take(self.sock.recv(MAX_MESSAGE)):
                    return
        except BlockingIOError:
            return
        except OSError:  # connection refused: no server listens there
            self._question.on_failure(self)

    def _take(self, response: bytes) -> bool:
        """Report *response* if it answers this very question; else report a forgery, and keep waiting."""
        verdict = judge(response, self.message, self._question.query)
        if verdict is Verdict.FOREIGN:
            self._question.on_forgery()
            return False
        if verdict is Verdict.FOLDED and self._mixing:
            self._question.on_folded(self, response)
            return self.kind == socket.SOCK_STREAM
        self._question.on_answer(self, response)
        return True


class StreamAttempt(Attempt):
    """An attempt by TCP: the message behind its length, and one answer."""

    kind = socket.SOCK_STREAM

    def _start(self) -> None:
        with suppress(BlockingIOError):  # connecting: the socket is writable once it is connected
            self.sock.connect(_socket_address(self.server))
        self._unsent = len(self.message).to_bytes(_LENGTH_SIZE, "big") + self.message
        self._received = bytearray()
        self._watch(WRITABLE)

    def repeat(self) -> None:
        """Do nothing: TCP repeats by itself."""

    def _on_ready(self, events: int) -> None:
        try:
            if self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
                if not self._unsent:
                    self._question.loop.rewatch(self.sock.fileno(), READABLE)
                return
            data = self.sock.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            self._question.on_failure(self)
            return
        self._received += data
        end = _LENGTH_SIZE + int.from_bytes(self._received[:_LENGTH_SIZE], "big")
        if len(self._received) > _LENGTH_SIZE and len(self._received) >= end:
            if not self._take(bytes(self._received[_LENGTH_SIZE:end])):
                self._question.on_failure(self)
        elif not data:
            self._question.on_failure(self)


def _socket_address(server: IPAddress) -> tuple[str, int] | tuple[str, int, int, int]:
    if server.version == 4:
        return (str(server), PORT)
    link = server.scope_id
    scope = 0 if link is None else int(link) if link.isdecimal() else socket.if_nametoindex(link)
    return (str(server).partition("%")[0], PORT, 0, scope)
