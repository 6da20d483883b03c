"""Reading and writing kernel objects in rows of the store, also objects whose class is not installed any more."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec import Struct

from netlib.codec import decode, encode
from netlib.errors import PackageFailed, PackageMissing
from netlib.objects import object_class
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_BEGINNING = b'{"type":"'

__all__ = ["Unreadable", "decode_object", "encode_object"]


class _Typed(Struct):
    type: str


class _WrittenKey(Key):
    """A key as the row has it; it cannot be split into its parts."""

    def __str__(self) -> str:
        return self.name


class Unreadable(KernelObject, frozen=True, kw_only=True, tag="unreadable"):
    """An object whose class's package is not installed or cannot be loaded: its row is kept unchanged; it cannot be removed."""

    written: str  # the key in the row
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
        yield f"# {self.written}: {self.why}"

    def _missing(self) -> PackageMissing:
        return PackageMissing(f"{self.written}: {self.why}", kind="kernel object", reference=self.written, package=self.package)


def encode_object(item: KernelObject) -> bytes:
    """Encode an object, with the tag of its class, for its row."""
    return item.body if isinstance(item, Unreadable) else encode(item)


def _tag(body: bytes) -> str:
    """The name of the class, with which the text of an object begins."""
    if body.startswith(_BEGINNING):
        return body[len(_BEGINNING) : body.index(b'"', len(_BEGINNING))].decode()
    return decode(body, _Typed).type


def decode_object(body: bytes, key: str) -> KernelObject:
    """Decode an object from the row with *key*, by the class that its ``type`` names; Unreadable without that class."""
    try:
        kind: Any = object_class(_tag(body))
    except (PackageMissing, PackageFailed) as error:
        return Unreadable(written=key, body=body, why=str(error), package=error.package)
    found: KernelObject = decode(body, kind)
    return found
