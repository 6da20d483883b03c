"""errno to netlib's errors, once: every system call and call of a library is made inside ``doing("create veth pair …")``."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from netlib.errors import FeatureMissing, KernelError, NotPermitted, ObjectMissing

_MISSING = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.ENXIO}
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}


@contextmanager
def doing(action: str) -> Iterator[None]:
    """Translate errors of libraries and of the kernel in the block; *action* is a verb phrase that names the thing."""
    try:
        yield
    except OSError as error:
        raise kernel_error(error.errno or 0, action, error.strerror or str(error)) from error
    except Exception as error:
        code = getattr(error, "code", None)  # pyroute2's NetlinkError is no OSError
        if not isinstance(code, int):
            raise
        raise kernel_error(code, action, os.strerror(code)) from error


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
