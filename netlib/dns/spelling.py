"""The case of a question's letters as a secret that an answer has to repeat ("0x20").

Servers compare names without regard to case and repeat the question as it was spelled. So each letter is one bit that a forger
has to guess besides the id and the port. Source: draft-vixie-dnsext-dns0x20-00.
"""

import random
import time
from enum import Enum, auto

from netlib.dns.message import HEADER_SIZE, Flag, Query, Rcode
from netlib.model import IPAddress

__all__ = ["TRY_NEXT", "FoldingServers", "Verdict", "judge", "lowered", "mixed"]

# Trying whether a server keeps the case costs a second question if it does not: once in ten minutes.
FOLDING_SECONDS = 600.0
REMEMBERED = 1024  # servers, for sandboxes name their own
_TYPE_AND_CLASS = 4
TRY_NEXT = {Rcode.SERVFAIL, Rcode.REFUSED}
_MAY_OMIT_QUESTION = {Rcode.FORMERR, Rcode.NOTIMP, *TRY_NEXT}

_source = random.SystemRandom()


class Verdict(Enum):
    """How a message from a server answers a question."""

    ANSWER = auto()
    FOLDED = auto()  # an answer to the question in another spelling
    FOREIGN = auto()  # no answer to this question


class FoldingServers:
    """The servers that answered in another case than they were asked in."""

    def __init__(self) -> None:
        self._until: dict[IPAddress, float] = {}

    def note(self, server: IPAddress) -> None:
        """Ask *server* in the client's own spelling for a while."""
        self._until.pop(server, None)
        if len(self._until) >= REMEMBERED:
            del self._until[next(iter(self._until))]  # noted longest ago
        self._until[server] = time.monotonic() + FOLDING_SECONDS

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, server: IPAddress) -> bool:
        until = self._until.get(server)
        if until is None:
            return False
        if until <= time.monotonic():
            del self._until[server]
            return False
        return True


def mixed(question: bytes) -> bytes:
    """The question section *question* with each letter of its name in upper or lower case, at random."""
    name, rest = question[:-_TYPE_AND_CLASS], question[-_TYPE_AND_CLASS:]
    # The length of a label is 63 at most, which is no letter's code.
    lower, upper, bits = name.lower(), name.upper(), _source.getrandbits(len(name))
    return bytes(upper[at] if bits >> at & 1 else lower[at] for at in range(len(name))) + rest


def lowered(question: bytes) -> bytes:
    """The question section *question* with its name in lower case."""
    return question[:-_TYPE_AND_CLASS].lower() + question[-_TYPE_AND_CLASS:]


def judge(response: bytes, message: bytes, query: Query) -> Verdict:
    """Judge whether *response* answers *message*, which is *query* in some spelling."""
    if len(response) < HEADER_SIZE or response[:2] != message[:2] or not response[2] & Flag.RESPONSE >> 8:
        return Verdict.FOREIGN
    questions = int.from_bytes(response[4:6], "big")
    if questions == 0:  # a server that could not read the question cannot repeat it
        return Verdict.ANSWER if response[3] & 15 in _MAY_OMIT_QUESTION else Verdict.FOREIGN
    end = HEADER_SIZE + len(query.question)
    asked, answered = message[HEADER_SIZE:end], response[HEADER_SIZE:end]
    if questions == 1 and answered == asked:
        return Verdict.ANSWER
    return Verdict.FOLDED if questions == 1 and lowered(answered) == lowered(asked) else Verdict.FOREIGN
