"""The configuration that every plugin reads, and CNI_ARGS.

A plugin declares its own keys in a subclass of :class:`NetConf`; that is all the checking of types that it needs.
"""

from collections.abc import Collection
from typing import TypeVar

from msgspec import Struct, field

from cni_plugins.protocol import CniError, Code
from cni_plugins.result import Dns

__all__ = ["Attachment", "Ipam", "NetConf", "parse_args", "required_ipam"]

_I = TypeVar("_I", bound="Ipam")

_IGNORE_UNKNOWN = "IgnoreUnknown"
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


class Ipam(Struct, frozen=True, kw_only=True, rename="camel"):
    """The key ``ipam``; an IPAM plugin adds its own keys in a subclass."""

    type: str = ""


class NetConf(Struct, frozen=True, kw_only=True, rename="camel"):
    """Keys of the specification: section 1, and what a runtime derives from it (section 3).

    ``prevResult`` and the attachments of a GC come with the call. Subclasses are ``frozen=True, kw_only=True``; names turn
    into camel case (``is_gateway``: ``isGateway``), others are given with ``field(name=...)``.
    """

    name: str
    type: str = ""
    cni_version: str = ""
    capabilities: dict[str, bool] = {}
    ip_masq: bool = False
    ipam: Ipam | None = None
    dns: Dns = Dns()


class Attachment(Struct, frozen=True):
    """One container's place in the network of the configuration."""

    container_id: str = field(name="containerID")
    ifname: str


def required_ipam(ipam: _I | None) -> _I:
    """Return the key ``ipam`` of an IPAM plugin's configuration; CniError (code 7) where there is none."""
    if ipam is None:
        raise CniError(Code.INVALID_CONFIG, "IPAM config missing 'ipam' key")
    return ipam


def parse_args(text: str, known: Collection[str]) -> dict[str, str]:
    """Read CNI_ARGS (``IP=10.1.0.5;IgnoreUnknown=1``) and return the *known* keys that it holds; the last of equal ones counts.

    CniError (code 4) for a pair without exactly one ``=``, and for an unknown key unless IgnoreUnknown is 1 or true.
    """
    given: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or "=" in value:
            raise _bad_args(f'ARGS: invalid pair "{pair}"', "write KEY=VALUE;KEY=VALUE")
        given[key] = value
    ignore = given.pop(_IGNORE_UNKNOWN, "0")
    if ignore.lower() not in _BOOLEANS:
        raise _bad_args(f'ARGS: error parsing value of pair "{_IGNORE_UNKNOWN}={ignore}"', "write 1 or true, 0 or false")
    unknown = [f"{key}={value}" for key, value in given.items() if key not in known]
    if unknown and not _BOOLEANS[ignore.lower()]:
        quoted = " ".join(f'"{pair}"' for pair in unknown)
        raise _bad_args(
            f"ARGS: unknown args [{quoted}]", f"known are {', '.join([*known, _IGNORE_UNKNOWN])}; or add {_IGNORE_UNKNOWN}=1"
        )
    return {key: value for key, value in given.items() if key in known}


def _bad_args(msg: str, hint: str) -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, msg, f"CNI_ARGS: {hint}")
