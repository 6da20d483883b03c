"""Messages of a launcher and netlibd: frames (:mod:`netlib.wire.protocol`) that hold fields instead of JSON, for C writes them.

A body is MAGIC, whose last byte counts the protocol's versions, and fields: four bytes of length (network order) and that many
bytes of any value. A request has the launcher's release, the store (``device:inode``, empty before there is one), names for
the descriptors that are lent besides the namespaces (``stdin``, ``netns``: words in their order), the plugin type, and the
environment, ``NAME=VALUE`` each. The answer is ``done``, the exit code (one byte), stdout and stderr; or ``not mine``, a reason
and netlibd's release. Imports nothing.
"""

__all__ = ["DONE", "MAGIC", "MAX_STDIN", "NETNS", "NOT_MINE", "STDIN", "environment", "pack", "unpack"]

MAGIC = b"CNI\x01"
STDIN, NETNS = b"stdin", b"netns"
DONE, NOT_MINE = b"done", b"not mine"
MAX_STDIN = 16 << 20
"""Bytes of the longest configuration, as cni_plugins.decode.MAX_BYTES; one more is read, so that a longer one is refused."""

_LENGTH = 4


def pack(*fields: bytes) -> bytes:
    """A body of these fields."""
    return MAGIC + b"".join(len(field).to_bytes(_LENGTH, "big") + field for field in fields)


def unpack(body: bytes) -> list[bytes]:
    """The fields of a body; ValueError when it is none, or not whole."""
    if not body.startswith(MAGIC):
        raise ValueError("no body of fields, or of another protocol")
    fields = []
    at = len(MAGIC)
    while at < len(body):
        end = at + _LENGTH + int.from_bytes(body[at : at + _LENGTH], "big")
        if at + _LENGTH > len(body) or end > len(body):
            raise ValueError("a field is cut off")
        fields.append(body[at + _LENGTH : end])
        at = end
    return fields


def environment(entries: list[bytes]) -> dict[str, str]:
    """The variables in *entries* as Python has them: of equal names the first, bytes that are no UTF-8 escaped."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.decode(errors="surrogateescape").partition("=")
        if equals:
            found.setdefault(name, value)
    return found
