"""errno to netlib's errors, once: every system call and call of a library is made inside ``doing("create veth pair …")``."""

import errno
import os

from netlib.errors import FeatureMissing, KernelError, NotPermitted, ObjectMissing

_MISSING = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.ENXIO}
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}


class doing:  # noqa: N801 - it is used like a function: with doing("create veth pair …")
    """Translate errors of libraries and of the kernel in the block; *action* is a verb phrase that names the thing.

    A class, for as a generator it takes 1.4 µs instead of 0.3. Where a connect passes several times it is written out, by
    :func:`translated`.
    """

    __slots__ = ("_action",)

    def __init__(self, action: str) -> None:
        self._action = action

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise translated(error, self._action) from error
        if isinstance(error, Exception):
            code = getattr(error, "code", None)  # pyroute2's NetlinkError is no OSError
            if isinstance(code, int):
                raise kernel_error(code, self._action, os.strerror(code)) from error


def translated(error: OSError, action: str) -> KernelError | NotPermitted:
    """The error for a system call that failed with *error*; *action* is a verb phrase that names the thing."""
    return kernel_error(error.errno or 0, action, error.strerror or str(error))


def kernel_error(code: int, action: str, reason: str = "") -> KernelError | NotPermitted:
    """The error for errno *code*, as one sentence."""
    reason = (reason or os.strerror(code)).lower()
    if code in (errno.EPERM, errno.EACCES):
        return NotPermitted(f"cannot {action}: {reason}; root (CAP_NET_ADMIN and CAP_SYS_ADMIN) is needed")
    if code in _MISSING:
        return ObjectMissing(f"cannot {action}: {reason}", code)
    if code in _UNSUPPORTED:
        return FeatureMissing(f"cannot {action}: this kernel lacks the feature ({reason})", code)
    return KernelError(f"cannot {action}: {reason}", code)
