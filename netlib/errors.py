"""Every error that netlib raises on purpose, and the exit code it ends a command with.

::

    NetlibError                      something a caller can act on; .exit_code for commands (1)
    ├── ConfigError                  the request itself is wrong: a value, an option, a name
    │   └── UnknownOption            an option that the driver does not have
    ├── NotFound                     no such network, sandbox, endpoint, container, driver
    │   └── PackageMissing           what is written down needs a package that is not installed any more
    ├── Conflict                     the request is fine, something that exists stands against it
    │   ├── AlreadyExists            the name is taken
    │   ├── InUse                    it has users, and the message lists them
    │   ├── AddressTaken             an address is leased, and the message says to whom
    │   └── PortTaken                a host port is held, and the message says by whom
    ├── PoolExhausted                no address (or no subnet) is left
    ├── KernelError                  the kernel refused; .errno is its reason
    │   ├── FeatureMissing           this kernel lacks a feature that the request needs
    │   ├── ObjectMissing            a link, route or netns that an action needs is not there
    │   └── NeedsRecreate            an attribute cannot be changed on the living object
    ├── NotPermitted                 root (or a capability) is needed
    ├── CommandNotRun                a container's command cannot be started; .exit_code is 126 or 127 (not found)
    ├── DeadlineExceeded             a lock or an answer did not come in time; the message names the holder
    │   └── Stuck                        netlibd, or the holder of a lock, is stopped or answers nobody
    ├── HostExhausted                too little memory, or no more processes; nothing was changed, and later it may be done
    ├── TeardownError                a removal went to its end, and these things would not go
    ├── StoreError                   the state folder cannot be read or written as it must be
    │   ├── DiskFull                 no space is left on its disk
    │   ├── StoreDamaged             its records cannot be read any more; the message names the way back
    │   ├── StoreLost                it is new, or older than what it made, which is told; nothing was touched
    │   └── WrongHost                the store describes another network namespace than this one
    └── DaemonError                  netlibd could not be started or reached, or broke off
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
    """Root of the tree: one clear sentence that names the thing, what was found and what to do.

    ``facts`` names the attributes that a program may read instead of the sentence; they are kept over the wire. One that is
    not known is empty (0 for a number).
    """

    exit_code = 1
    facts: tuple[str, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ConfigError(NetlibError):
    """A value in the request is malformed or contradicts another one."""


class UnknownOption(ConfigError):
    """An option that the named driver does not have; ``option`` is its key, ``known`` are those that it has."""

    facts = ("option", "known")

    def __init__(self, message: str, *, option: str = "", known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.option = option
        self.known = tuple(known)


class NotFound(NetlibError):
    """The thing named in the request does not exist: a ``kind`` of thing ("network"), named by ``reference``."""

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
    """Something that exists stands against the request: ``holder``, as people call it."""

    facts: tuple[str, ...] = ("holder",)

    def __init__(self, message: str, *, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class AlreadyExists(Conflict):
    """The name (or the attachment) is there already; ``name`` is it."""

    facts = ("holder", "name")

    def __init__(self, message: str, *, holder: str = "", name: str = "") -> None:
        super().__init__(message, holder=holder)
        self.name = name


class InUse(Conflict):
    """The thing still has users; ``users`` are their names."""

    facts = ("holder", "users")

    def __init__(self, message: str, *, holder: str = "", users: Sequence[str] = ()) -> None:
        super().__init__(message, holder=holder)
        self.users = tuple(users)


class AddressTaken(Conflict):
    """The ``address`` of ``network`` is leased to ``holder``."""

    facts = ("holder", "address", "network")

    def __init__(self, message: str, *, holder: str = "", address: str = "", network: str = "") -> None:
        super().__init__(message, holder=holder)
        self.address = address
        self.network = network


class PortTaken(Conflict):
    """The host ``port`` of ``protocol`` is held by ``holder``, on ``host_ip`` or, where that is empty, on every address."""

    facts = ("holder", "port", "protocol", "host_ip")

    def __init__(self, message: str, *, holder: str = "", port: int = 0, protocol: str = "", host_ip: str = "") -> None:
        super().__init__(message, holder=holder)
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
    """A link, route or netns that the action needs is not there."""


class NeedsRecreate(KernelError):
    """The attribute cannot be changed while the object lives; remove and create it again."""


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
    """netlibd, or the process that holds a lock, is stopped or answers nobody; the message says how to go on."""


class HostExhausted(NetlibError):
    """The host, or a control group, has too little memory or lets no more processes be made."""


class TeardownError(NetlibError):
    """A removal went on to its end; ``failures`` holds what would not go, in the order met."""

    def __init__(self, failures: Sequence[NetlibError]) -> None:
        super().__init__("; ".join(str(failure) for failure in failures))
        self.failures = tuple(failures)


class StoreError(NetlibError):
    """The state folder cannot be used: unreadable, newer than this program, or damaged."""


class DiskFull(StoreError):
    """No space is left on the disk of the state folder."""


class StoreDamaged(StoreError):
    """The records cannot be read any more; ``what`` says which."""

    facts = ("what",)

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; `netlib system reset --lost` sets the store aside and clears away what it made")
        self.what = what


class StoreLost(StoreError):
    """The records are not those of what is there: the store is new, an older copy, or has lost the end of its log."""

    facts = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what}; nothing was touched. `netlib system restore FILE` puts a backup in its place, without FILE it accepts "
            "the store as it is; `netlib system reset --lost` removes all that was made"
        )


class WrongHost(StoreError):
    """The store describes another network namespace than the one it was opened from."""


class DaemonError(NetlibError):
    """netlibd could not be started or reached, or broke off in the middle of an answer."""
