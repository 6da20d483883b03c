"""All errors that netlib raises on purpose, and the exit codes of commands that end with them.

::

    NetlibError                      an error that a caller can act on; .exit_code for commands (1)
    ├── ConfigError                  the request is wrong: a value, an option, a name
    │   └── UnknownOption            an option that the driver does not have: .option, .known
    ├── NotFound                     no such network, sandbox, endpoint, container, driver: .kind, .reference
    │   └── PackageMissing           a record needs a package that is not installed any more: .package, too
    ├── Conflict                     the request contradicts something that exists: .holder, .holder_kind
    │   ├── AlreadyExists            the name is taken: .name; for a sandbox that is in a network: .network, .sandbox
    │   ├── InUse                    it has users: .users
    │   ├── AddressTaken             the address is leased to the holder: .address, .network
    │   └── PortTaken                the host port is the holder's: .port, .protocol, .host_ip
    ├── PoolExhausted                no address (or no subnet) is left: .network, .subnet
    ├── KernelError                  the kernel refused: .errno
    │   ├── FeatureMissing           this kernel lacks a feature that the request needs
    │   ├── ObjectMissing            a link, route or netns that an action needs does not exist
    │   └── NeedsRecreate            an attribute of an existing object cannot be changed
    ├── NotPermitted                 root (or a capability) is needed
    ├── CommandNotRun                a container's command cannot be started; .exit_code is 126 or 127 (not found)
    ├── DeadlineExceeded             a lock or an answer did not come in time; the message names the holder
    │   └── Stuck                    netlibd, or the holder of a lock, is stopped or does not answer
    ├── HostExhausted                too little memory, or no more processes; nothing was changed, and it can be tried again
    ├── TeardownError                a removal tried everything, and could not remove the objects in the message: .failures
    ├── StoreError                   the state folder cannot be read or written
    │   ├── DiskFull                 no space is left on its disk
    │   ├── StoreDamaged             the records cannot be read any more: .what; the message says how to go on
    │   ├── StoreLost                the store is new or an older copy, and there are newer objects: .what; nothing was changed
    │   └── WrongHost                the store describes another network namespace than this one
    ├── PackageFailed                a driver, or a kernel object, of another package failed by a defect of its own
    └── DaemonError                  netlibd could not be started or reached, or ended during a request

A ``holder`` is a plain name, and ``holder_kind`` says of what: "network", "sandbox", "container" (of CNI, or of the runtime),
"process" (a program of the host: ``python3 (pid 123)``), "auxiliary" (an address that a network keeps free), or "gateway" (then
the holder is the network that has it).
"""

from collections.abc import Sequence

__all__ = [
    "AddressTaken",
    "AlreadyExists",
    "CommandNotRun",
    "ConfigError",
    "Conflict",
    "DaemonError",
    "DeadlineExceeded",
    "DiskFull",
    "FeatureMissing",
    "HostExhausted",
    "InUse",
    "KernelError",
    "NeedsRecreate",
    "NetlibError",
    "NotFound",
    "NotPermitted",
    "ObjectMissing",
    "PackageFailed",
    "PackageMissing",
    "PoolExhausted",
    "PortTaken",
    "StoreDamaged",
    "StoreError",
    "StoreLost",
    "Stuck",
    "TeardownError",
    "UnknownOption",
    "WrongHost",
]


class NetlibError(Exception):
    """Root of the tree. The message is one clear sentence that names the thing, what was found and what to do.

    ``facts`` names the attributes that a program may read instead of the message; netlibd sends them to its clients. An unknown
    one is empty (0 for a number).
    """

    exit_code = 1
    facts: tuple[str, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ConfigError(NetlibError):
    """A value of the request is malformed or contradicts another value."""


class UnknownOption(ConfigError):
    """An option that the named driver does not have; ``option`` is its key, ``known`` are those that it has."""

    facts = ("option", "known")

    def __init__(self, message: str, *, option: str = "", known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.option = option
        self.known = tuple(known)


class NotFound(NetlibError):
    """A thing that the request names does not exist: its ``kind`` ("network") and its ``reference`` (a name or id)."""

    facts: tuple[str, ...] = ("kind", "reference")

    def __init__(self, message: str, *, kind: str = "", reference: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.reference = reference


class PackageMissing(NotFound):
    """A record needs a driver, or a kernel object, of a ``package`` that is not installed any more."""

    facts = ("kind", "reference", "package")

    def __init__(self, message: str, *, kind: str = "", reference: str = "", package: str = "") -> None:
        super().__init__(message, kind=kind, reference=reference)
        self.package = package


class Conflict(NetlibError):
    """The request contradicts something that exists: the thing of kind ``holder_kind`` that is called ``holder``."""

    facts: tuple[str, ...] = ("holder", "holder_kind")

    def __init__(self, message: str, *, holder: str = "", holder_kind: str = "") -> None:
        super().__init__(message)
        self.holder = holder
        self.holder_kind = holder_kind


class AlreadyExists(Conflict):
    """A thing with this ``name`` exists already, or ``sandbox`` is in ``network`` already."""

    facts = ("holder", "holder_kind", "name", "network", "sandbox")

    def __init__(
        self, message: str, *, holder: str = "", holder_kind: str = "", name: str = "", network: str = "", sandbox: str = ""
    ) -> None:
        super().__init__(message, holder=holder, holder_kind=holder_kind)
        self.name = name
        self.network = network
        self.sandbox = sandbox


class InUse(Conflict):
    """The thing has users; ``users`` are their names."""

    facts = ("holder", "holder_kind", "users")

    def __init__(self, message: str, *, holder: str = "", holder_kind: str = "", users: Sequence[str] = ()) -> None:
        super().__init__(message, holder=holder, holder_kind=holder_kind)
        self.users = tuple(users)


class AddressTaken(Conflict):
    """The ``address`` of ``network`` is leased to ``holder``."""

    facts = ("holder", "holder_kind", "address", "network")

    def __init__(self, message: str, *, holder: str = "", holder_kind: str = "", address: str = "", network: str = "") -> None:
        super().__init__(message, holder=holder, holder_kind=holder_kind)
        self.address = address
        self.network = network


class PortTaken(Conflict):
    """The host ``port`` of ``protocol`` is held by ``holder``, on ``host_ip`` or, where that is empty, on every address.

    A holder whose kind is not given is a sandbox.
    """

    facts = ("holder", "holder_kind", "port", "protocol", "host_ip")

    def __init__(
        self,
        message: str,
        *,
        holder: str = "",
        holder_kind: str = "",
        port: int = 0,
        protocol: str = "",
        host_ip: str = "",
    ) -> None:
        super().__init__(message, holder=holder, holder_kind=holder_kind or ("sandbox" if holder else ""))
        self.port = port
        self.protocol = protocol
        self.host_ip = host_ip


class PoolExhausted(NetlibError):
    """No address is left in ``subnet`` of ``network``; both are empty where no subnet is left for a network."""

    facts = ("network", "subnet")

    def __init__(self, message: str, *, network: str = "", subnet: str = "") -> None:
        super().__init__(message)
        self.network = network
        self.subnet = subnet


class KernelError(NetlibError):
    """The kernel refused an action; ``errno`` is its reason, 0 where it gave none."""

    facts = ("errno",)

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class FeatureMissing(KernelError):
    """This kernel was built without something that the request needs."""


class ObjectMissing(KernelError):
    """A link, route or netns that the action needs does not exist."""


class NeedsRecreate(KernelError):
    """An attribute of an existing object cannot be changed; remove the object and create it again."""


class NotPermitted(NetlibError):
    """The caller lacks root or a capability."""


class CommandNotRun(NetlibError):
    """The command of a container cannot be started: not found (127), or not executable (126)."""

    facts = ("exit_code",)

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DeadlineExceeded(NetlibError):
    """A lock or an answer did not come in time."""


class Stuck(DeadlineExceeded):
    """netlibd, or the process that holds a lock, is stopped or does not answer; the message says how to go on."""


class HostExhausted(NetlibError):
    """The host, or a control group, has too little memory or allows no more processes."""


class TeardownError(NetlibError):
    """A removal tried everything and failed in part; ``failures`` holds the errors, in their order.

    ``subject`` ("network 'web'") is the record that is removed except for the objects in the failures, or empty.
    """

    facts = ("subject",)

    def __init__(self, failures: Sequence[NetlibError], *, subject: str = "") -> None:
        begin = f"{subject} is removed except for an object that the next command tries to remove again: " if subject else ""
        super().__init__(begin + "; ".join(str(failure) for failure in failures))
        self.failures = tuple(failures)
        self.subject = subject


class StoreError(NetlibError):
    """The state folder cannot be used: unreadable, newer than this program, or damaged."""


class DiskFull(StoreError):
    """No space is left on the disk of the state folder."""


class StoreDamaged(StoreError):
    """The records cannot be read any more; ``what`` is the damage."""

    facts = ("what",)

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; `netlib system reset --lost` sets the store aside and clears away what it made")
        self.what = what


class StoreLost(StoreError):
    """The records do not describe the present objects: the store is new, an older copy, or has lost the end of its log."""

    facts = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what}; nothing was touched. `netlib system restore FILE` puts a backup in its place, without FILE it accepts "
            "the store as it is; `netlib system reset --lost` removes all that was made"
        )


class WrongHost(StoreError):
    """The store describes another network namespace than the one it was opened from."""


class PackageFailed(NetlibError):
    """A driver, or a kernel object (its ``kind`` and ``reference``), of a ``package`` raised an error that is none of netlib's.

    The cause is that error, except where netlibd did the work: the traceback is in its log then.
    """

    facts = ("kind", "reference", "package")

    def __init__(self, message: str, *, kind: str = "", reference: str = "", package: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.reference = reference
        self.package = package


class DaemonError(NetlibError):
    """netlibd could not be started or reached, or ended before its answer was complete."""
