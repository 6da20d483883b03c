"""What the CNI specification fixes: versions, verbs, error codes, and how an error is written.

Own codes (100 and above) are listed in :class:`Code` and nowhere else. https://www.cni.dev/docs/spec/ (1.1.0).
"""

from enum import IntEnum, StrEnum

import msgspec

from netlib.errors import (
    ConfigError,
    Conflict,
    DaemonError,
    DeadlineExceeded,
    FeatureMissing,
    HostExhausted,
    KernelError,
    NetlibError,
    NotFound,
    NotPermitted,
    ObjectMissing,
    PoolExhausted,
    StoreError,
    StoreLost,
    TeardownError,
)

__all__ = ["NEWEST", "VERSIONS", "CniError", "Code", "Command", "as_cni_error", "at_least", "error_json"]

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Every version of the specification that we speak, oldest first."""
NEWEST = VERSIONS[-1]


def at_least(version: str, floor: str) -> bool:
    """Whether *version*, one of VERSIONS, is *floor* or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(floor)


class Command(StrEnum):
    """The verbs."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


class Code(IntEnum):
    """Error codes: below 100 the specification's (8 and 999 are libcni's), from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3  # tells the runtime that no DEL is needed: only where nothing can be left behind
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN = 11
    UNAVAILABLE = 50
    LIMITED_CONNECTIVITY = 51

    KERNEL = 100  # the kernel refused
    MISSING = 101  # a link, a network or another thing that the request names is not there
    CONFLICT = 102  # it contradicts something that exists: an address, a port, a name
    EXHAUSTED = 103  # no address is left
    FEATURE_MISSING = 104  # this kernel lacks what the plugin needs
    NOT_PERMITTED = 105  # root or a capability is needed
    DRIFT = 106  # CHECK: what ADD made is altered or gone
    TEARDOWN = 107  # DEL or GC removed all that it could, and something is left
    STORE = 108  # the state folder cannot be used
    DAEMON = 109  # netlibd could not be started or reached, or ended in the middle of an answer
    INTERNAL = 999  # a defect; libcni's number for any error without a code


class CniError(NetlibError):
    """An error with its code: *msg* is short and fixed, *details* names what was found and what to do."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg}; {details}" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details


# A class not listed has the code of the nearest ancestor that is.
_CODES: dict[type[NetlibError], Code] = {
    ConfigError: Code.INVALID_CONFIG,
    NotFound: Code.MISSING,
    Conflict: Code.CONFLICT,
    PoolExhausted: Code.EXHAUSTED,
    KernelError: Code.KERNEL,
    FeatureMissing: Code.FEATURE_MISSING,
    ObjectMissing: Code.MISSING,
    NotPermitted: Code.NOT_PERMITTED,
    DeadlineExceeded: Code.TRY_AGAIN,
    HostExhausted: Code.TRY_AGAIN,
    TeardownError: Code.TEARDOWN,
    StoreError: Code.STORE,
    StoreLost: Code.TRY_AGAIN,  # nothing was changed; a person has to look after the store
    DaemonError: Code.DAEMON,
    NetlibError: Code.INTERNAL,
}
_OWN = 100


def as_cni_error(error: NetlibError, command: Command | None = None) -> CniError:
    """Give an error of the core its code; at STATUS, what would fail an ADD is 50, "the plugin is not available"."""
    if isinstance(error, CniError):
        return error
    code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    if command is Command.STATUS and (code >= _OWN or isinstance(error, StoreLost)):
        code = Code.UNAVAILABLE
    return CniError(code, str(error))


def error_json(error: CniError, version: str) -> bytes:
    """Write *error* as the specification's error object; what is no UTF-8, such as a path of the environment, is escaped."""
    document: dict[str, str | int] = {"cniVersion": version, "code": int(error.code), "msg": _writable(error.msg)}
    if error.details:
        document["details"] = _writable(error.details)
    return msgspec.json.format(msgspec.json.encode(document), indent=4) + b"\n"


def _writable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
