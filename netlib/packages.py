"""Drivers and kernel objects of other packages: loaded and called so that a defect of theirs is told as theirs.

One rule: whatever such a driver raises besides a NetlibError becomes a PackageFailed, which names the driver and its package.
Its traceback is the error's cause, and netlibd writes it into its log. Built-in drivers are called directly.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from netlib.errors import NetlibError, PackageFailed
from netlib.plan import Plan

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["changed_package", "failed", "guarded", "loaded"]

_read: dict[str, tuple[str, tuple[int, int]]] = {}
"""The packages of which this process has loaded code: folder of the package's metadata, to its name and what _stamp says."""


def loaded(point: "EntryPoint", what: str) -> Any:
    """Import what *point* names, and return it; *what* it is ("network driver") is for the PackageFailed where that fails."""
    _note(point)
    try:
        return point.load()
    except (NetlibError, MemoryError):
        raise
    except Exception as error:
        package = point.dist.name if point.dist is not None else ""
        raise failed(error, what, point.name, package, "cannot be loaded") from error


def _note(point: "EntryPoint") -> None:
    folder = getattr(point.dist, "_path", None)  # a distribution in a folder; one in a zip file cannot change unseen
    if point.dist is not None and folder is not None:
        _read.setdefault(str(folder), (point.dist.name, _stamp(str(folder))))


def _stamp(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def changed_package() -> str:
    """Return the name of a package that was upgraded or uninstalled after this process loaded code of it, or "".

    It costs one stat for each such package, and nothing where drivers are built in.
    """
    return next((name for folder, (name, stamp) in _read.items() if _stamp(folder) != stamp), "")


def guarded(make: Callable[[], Any], what: str, name: str, package: str) -> Any:
    """Return an object that passes each call of a method on to the driver that *make* returns; PackageFailed where one fails.

    Its class has the driver's methods, so :func:`netlib.plan.ability` finds the driver's abilities.
    """

    def call(action: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        try:
            return action(*args, **keywords)
        except (NetlibError, MemoryError):
            raise
        except Exception as error:
            raise failed(error, what, name, package, "failed") from error

    def method(called: str) -> Callable[..., Any]:
        def pass_on(guard: _Guard, *args: Any, **keywords: Any) -> Any:
            found = call(getattr(guard.guarded_driver, called), *args, **keywords)
            if called.endswith("_plan") and not isinstance(found, Plan):
                error = TypeError(f"{called} returned a {type(found).__name__}, not a Plan")
                raise failed(error, what, name, package, "failed")
            return found

        return pass_on

    driver = call(make)
    kind = type(driver)
    methods = {item: method(item) for item in dir(kind) if not item.startswith("_") and _is_method(getattr(kind, item))}
    return type(kind.__name__, (_Guard,), methods)(driver)


class _Guard:
    """The common part of guards: attributes are the driver's own."""

    def __init__(self, driver: Any) -> None:
        self.guarded_driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guarded_driver, name)


def _is_method(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)  # an option struct is callable too


def failed(error: Exception, what: str, name: str, package: str, how: str) -> PackageFailed:
    """Return the error for a driver, or a kernel object, that raised *error*, and log it with its traceback."""
    import logging

    of_package = f" of the package {package}" if package else ""
    found = PackageFailed(
        f"{what} {name!r}{of_package} {how}: {type(error).__name__}: {error}", kind=what, reference=name, package=package
    )
    # Info: netlibd's log has it. A command writes the traceback to errors.log, and a Python program has it as the cause.
    logging.getLogger(__name__).info("%s", found, exc_info=error)
    return found
