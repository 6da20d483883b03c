"""The requests of verbs: one struct for each, for command lines, clients of netlibd and Python programs alike.

A command line has texts, a client of netlibd JSON, a Python program texts or typed values. :func:`read` makes the struct from
any of them, once; all later code works with typed values. Each field declares how a text is read, and the words in which a
wrong value is refused.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_type_hints

from msgspec import Struct, ValidationError, structs

from netlib.codec import convert
from netlib.errors import ConfigError
from netlib.model import IPAddress, IPNetwork, Link, ResolverConfig
from netlib.names import parse_address, parse_labels, parse_link, parse_options, parse_subnet
from netlib.ports import PortRequest, parse_publish
from netlib.structs import Asked

__all__ = [
    "BackupRequest",
    "CniPruneRequest",
    "ConnectRequest",
    "DisconnectRequest",
    "FilterRequest",
    "Flag",
    "Join",
    "Labels",
    "Links",
    "LogRequest",
    "NameRequest",
    "NamesRequest",
    "NetworkRequest",
    "NoRequest",
    "Number",
    "Ports",
    "Request",
    "Resolver",
    "SandboxRequest",
    "Text",
    "Texts",
    "address_or_none",
    "each",
    "keyword_address",
    "read",
]

_R = TypeVar("_R", bound=Struct)


def each(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that reads each item of a list by *parse*. It returns a text unchanged, which is refused later."""

    def read_all(value: Any) -> Any:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return value
        return tuple(parse(item) for item in value)

    return read_all


def _pairs(parse: Callable[[Iterable[str]], dict[str, str]]) -> Callable[[Any], Any]:
    """Return a function that reads a list of ``KEY=VALUE`` texts by *parse* and returns any other value unchanged."""

    def read_pairs(value: Any) -> Any:
        is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return parse(value) if is_list else value

    return read_pairs


def _auxiliary(value: Any) -> Any:
    """Read auxiliary addresses from a list of ``NAME=IP`` texts or from a dict."""
    if isinstance(value, list | tuple):
        found: dict[str, str] = {}
        for text in value:
            name, _, address = text.partition("=")
            if not name or not address:
                raise ConfigError(f"--aux-address {text!r} is malformed; write it like printer=172.28.0.5")
            if name in found:
                raise ConfigError(f"--aux-address {text!r}: the name {name!r} is given twice; choose another")
            found[name] = address
        value = found
    if not isinstance(value, Mapping):
        return value
    return {name: parse_address(address, f"aux-address {name}") for name, address in value.items()}


def _ports(value: Any) -> Any:
    """Read texts like those of ``-p``, each of which may stand for many ports; other items are returned unchanged."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        return value
    items = tuple(value)
    for item in items:
        if not isinstance(item, str | PortRequest | Mapping):
            raise ConfigError(f'{item!r} in ports must be a text like "8080:80"')
    return tuple(port for item in items for port in (parse_publish(item) if isinstance(item, str) else (item,)))


def _link(value: Any) -> Any:
    return parse_link(value) if isinstance(value, str) else value


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _resolver(value: Any) -> Any:
    """Read a dict, or check a ResolverConfig, whose constructor does not check the values that a Python program gives it."""
    given = structs.asdict(value) if isinstance(value, ResolverConfig) else value
    if not isinstance(given, Mapping):
        return given
    texts = {"servers": _name_server, "extra_hosts": _extra_host}
    return read(ResolverConfig, {name: each(texts[name])(item) if name in texts else item for name, item in given.items()})


def _name_server(value: Any) -> Any:
    return parse_address(value, "--dns") if isinstance(value, str) else value


def _extra_host(value: Any) -> Any:
    """Read ``--add-host NAME:ADDRESS`` or ``NAME=ADDRESS``."""
    if not isinstance(value, str):
        return value
    name, _, address = value.partition("=" if "=" in value else ":")
    if not name or not address:
        raise ConfigError(f"--add-host {value!r} is malformed; write it like NAME:ADDRESS")
    return name, parse_address(address.removeprefix("[").removesuffix("]"), f"--add-host {value!r}: address")


def address_or_none(flag: str) -> Callable[[Any], Any]:
    """Return a function that reads an address, or None from an empty text; its errors name *flag*."""
    return lambda value: parse_address(value, flag) if value else None


def keyword_address(name: str, value: Any) -> IPAddress | None:
    """Read the address that a Python program gave as the keyword *name*; None or an empty text is none."""
    if value is None or value == "":
        return None
    try:
        return parse_address(value)
    except ConfigError:
        raise ConfigError(f"{name}={value!r} is no IP address; write it like 172.18.0.10 or fd00::10") from None


Text = Annotated[str, Asked("a text")]
Flag = Annotated[bool, Asked("True or False")]
Number = Annotated[int, Asked("a whole number")]
Texts = Annotated[tuple[str, ...], Asked("a list or tuple of texts")]
Options = Annotated[dict[str, str], Asked("a dict with texts as keys and values", _pairs(parse_options))]
Labels = Annotated[dict[str, str], Asked("a dict with texts as keys and values", _pairs(parse_labels))]
Links = Annotated[tuple[Link, ...], Asked("a list or tuple of links, written like NAME or NAME:ALIAS", each(_link))]
Resolver = Annotated[ResolverConfig, Asked("a netlib.model.ResolverConfig", _resolver)]
Ports = Annotated[tuple[PortRequest, ...], Asked('a list or tuple of ports, written like "8080:80"', _ports)]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of a verb."""


class NoRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of a verb without arguments."""


class NameRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One record, by its name, its id or the unambiguous beginning of its id."""

    name: Text


class NamesRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several records."""

    names: Texts


class FilterRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records that pass filters, ``KEY=VALUE`` each."""

    filters: Texts = ()


class NetworkRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network to create. Gateways, ranges and auxiliary addresses belong to the subnet that contains them."""

    name: Text
    driver: Text = "bridge"
    subnets: Annotated[tuple[IPNetwork, ...], Asked("a list or tuple of subnets", each(parse_subnet))] = ()
    gateways: Annotated[
        tuple[IPAddress, ...], Asked("a list or tuple of IP addresses", each(partial(parse_address, what="gateway")))
    ] = ()
    ip_ranges: Annotated[
        tuple[IPNetwork, ...], Asked("a list or tuple of subnets", each(partial(parse_subnet, what="ip-range")))
    ] = ()
    auxiliary: Annotated[dict[str, IPAddress], Asked("a dict with texts as keys", _auxiliary)] = {}
    internal: Flag = False
    ipv4: Flag = True
    ipv6: Flag = False
    options: Options = {}
    labels: Labels = {}
    ipam_driver: Text = "default"
    ipam_options: Options = {}
    scope: Text = "local"


class SandboxRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sandbox to create, with a new netns (*netns* None), with the host's (``""``), or with the netns at a path."""

    name: Text
    netns: Annotated[str | None, Asked("a text, or None", _path)] = None
    hostname: Text = ""
    domainname: Text = ""
    resolver: Resolver = ResolverConfig()
    sandbox_id: Text = ""
    sysctls: Annotated[dict[str, str], Asked("a dict with texts as keys and values")] = {}
    cni_container: Text = ""


class Join(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a container in one network; its record keeps one struct for each of its networks."""

    network: Text = ""
    ifname: Text = ""
    ip: Annotated[IPAddress | None, Asked("an IP address", address_or_none("--ip"))] = None
    ip6: Annotated[IPAddress | None, Asked("an IP address", address_or_none("--ip6"))] = None
    mac: Text = ""
    aliases: Texts = ()
    links: Links = ()
    gw_priority: Number = 0
    options: Options = {}

    def connecting(self, container: str, ports: Sequence[PortRequest] = ()) -> "ConnectRequest":
        """Return the request to connect *container* with these options and to publish *ports*."""
        return ConnectRequest(container=container, ports=tuple(ports), **structs.asdict(self))


class ConnectRequest(Join, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container or a sandbox to connect to a network, with ports to publish."""

    container: Text = ""
    ports: Ports = ()

    @property
    def join(self) -> Join:
        """The options that the container's record keeps for its next start."""
        return Join(**{name: getattr(self, name) for name in Join.__struct_fields__})


class LogRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The number of operations to show."""

    limit: Number = 50


class BackupRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file to copy the store into; an existing file is refused unless *replace* is given."""

    file: Text
    replace: Flag = False


class CniPruneRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether to remove the attachments whose netns is gone before the networks without attachments."""

    stale: Flag = False


class DisconnectRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container to disconnect from a network."""

    network: Text
    container: Text


def read(
    kind: type[_R],
    values: Mapping[str, Any],
    *,
    spelled: Callable[[str], str] = str,
    written: Callable[[Any], str] = repr,
) -> _R:
    """Make a request of class *kind* from *values*. ConfigError names the first value that is wrong, missing or unknown.

    *spelled* returns the name that a field has at the source of the values, *written* the text that a value has there.
    """
    fields = _fields(kind)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"there is no argument {name!r}; there are: {', '.join(fields)}")
        reader = fields[name].asked.read
        given[name] = value if reader is None else reader(value)
    try:
        return convert(given, kind)
    except ValidationError as error:
        for name, value in given.items():
            try:
                convert(value, fields[name].type)
            except ValidationError:
                text = f"{spelled(name)}={written(values[name])} must be {fields[name].asked.words}"
                raise ConfigError(text) from error
        missing = next(field.name for field in structs.fields(kind) if field.required and field.name not in given)
        raise ConfigError(f"no {spelled(missing)} given") from error


class _Field(NamedTuple):
    type: Any
    asked: Asked


@cache
def _fields(kind: type[Struct]) -> dict[str, _Field]:
    """Return the fields of *kind* with their types in msgspec's form."""
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for name in kind.__struct_fields__:
        plain, *extras = get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
        asked = next((extra for extra in extras if isinstance(extra, Asked)), None)
        assert asked is not None, f"{kind.__name__}.{name} does not say what it takes"
        found[name] = _Field(plain, asked)
    return found
