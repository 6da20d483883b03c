"""Kernel objects to and from the rows of the store, also those whose class is not installed any more."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec import Struct

from netlib.codec import decode, encode
from netlib.errors import PackageMissing
from netlib.objects import object_class
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_BEGINNING = b'{"type":"'

__all__ = ["Unreadable", "decode_object", "encode_object"]


class _Typed(Struct):
    type: str


class _WrittenKey(Key):
    """A key as it is written down; its parts are not known."""

    def __str__(self) -> str:
        return self.name


class Unreadable(KernelObject, frozen=True, kw_only=True, tag="unreadable"):
    """An object whose class is of a package that is not installed: it stays written down as it is, and cannot be removed."""

    written: str  # its key
    body: bytes
    why: str
    package: str

    @cached_property
    def key(self) -> Key:
        return _WrittenKey("unreadable", "", self.written)

    def ensure(self, kernel: "Kernel") -> NoReturn:
        raise self._missing()

    def remove(self, kernel: "Kernel") -> NoReturn:
        raise self._missing()

    def drift(self, kernel: "Kernel") -> str:
        return self.why

    def commands(self) -> Iterable[str]:
        return ()

    def _missing(self) -> PackageMissing:
        return PackageMissing(f"{self.written}: {self.why}", kind="kernel object", reference=self.written, package=self.package)


def encode_object(item: KernelObject) -> bytes:
    """Write an object with the name of its class."""
    return item.body if isinstance(item, Unreadable) else encode(item)


def _tag(body: bytes) -> str:
    """The name of the class, with which the text of an object begins."""
    if body.startswith(_BEGINNING):
        return body[len(_BEGINNING) : body.index(b'"', len(_BEGINNING))].decode()
    return decode(body, _Typed).type


def decode_object(body: bytes, key: str) -> KernelObject:
    """Read an object that was written down under *key*, by the class that its ``type`` names."""
    try:
        kind: Any = object_class(_tag(body))
    except PackageMissing as missing:
        return Unreadable(written=key, body=body, why=str(missing), package=missing.package)
    found: KernelObject = decode(body, kind)
    return found
