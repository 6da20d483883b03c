"""How a command ends: one sentence on standard error, Docker's exit code, and never a traceback."""

import errno
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar

from netlib.config import Config
from netlib.errors import NetlibError, PackageFailed
from netlib.kernel.folders import PRIVATE, make_folder, open_private
from netlib.wire.notices import shown_by

_T = TypeVar("_T")

REFUSED = 125  # as in Docker: netlib refused, where 1 and the like are the exit code of a container's command or of check
INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE
ERROR_LOG = "errors.log"
_NO_MEMORY = b"netlib: too little memory is left for this; free some, or raise the limit of memory, and try again\n"


def complain(sentence: str) -> None:
    """Print one line ``netlib: …`` on standard error; what a terminal would obey is spelled out."""
    sys.stdout.flush()
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(sentence.split()))
    print(f"netlib: {text}", file=sys.stderr)


def guarded(command: Callable[[], int], config: Config, arguments: Sequence[str]) -> int:
    """Run *command* and return its exit code, whatever it raises."""
    with shown_by(lambda sentence: complain(f"warning: {sentence}")):
        return _guarded(command, config, arguments)


def _guarded(command: Callable[[], int], config: Config, arguments: Sequence[str]) -> int:
    try:
        try:
            code = command()
        finally:
            sys.stdout.flush()
    except PackageFailed as error:
        details = _log_traceback(config, arguments) if error.__cause__ else f"its details are in {config.log_file}"
        complain(f"{error}; {details}")
        return error.exit_code
    except NetlibError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted; what was under way is finished or undone by the next command")
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_output()
        return PIPE_CLOSED
    except Exception as error:  # noqa: BLE001  the last one before the user: a defect of ours, told in one sentence
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            _give_up_output()
            complain("the output cannot be written: no space left on device")
            return REFUSED
        try:
            from netlib.kernel.scarcity import exhaustion

            scarce = exhaustion(error)
            complain(str(scarce or f"internal error: {type(error).__name__}: {error}; {_log_traceback(config, arguments)}"))
        except MemoryError:
            os.write(2, _NO_MEMORY)  # a constant, for composing a sentence takes memory
        return REFUSED
    return code


def only_watching(command: Callable[[Config, Namespace], int]) -> Callable[[Config, Namespace], int]:
    """Have *command*, which changes nothing, end without a word at ctrl-c: nothing was under way."""

    @wraps(command)
    def watch(config: Config, given: Namespace) -> int:
        try:
            return command(config, given)
        except KeyboardInterrupt:
            return INTERRUPTED

    return watch


@contextmanager
def refusals_exit_125() -> Iterator[None]:
    """Give errors in the block the exit code REFUSED; 126 and 127, of a command that cannot be run, stay."""
    try:
        yield
    except NetlibError as error:
        error.exit_code = max(error.exit_code, REFUSED)
        raise


def open_standard() -> None:
    """Open /dev/null where the caller closed standard input, output or error: else files of ours would get these numbers."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  for the life of the process, as the two below
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _give_up_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter reports a BrokenPipeError when it ends


def each(names: Sequence[str], action: Callable[[str], _T]) -> tuple[list[_T], int]:
    """Do *action* for every name, also after failures; return the results and the exit code of the last failure.

    Each failure is reported on standard error at once.
    """
    results: list[_T] = []
    code = 0
    for name in names:
        try:
            results.append(action(name))
        except NetlibError as error:
            complain(str(error))
            code = error.exit_code
    return results, code


def _log_traceback(config: Config, arguments: Sequence[str]) -> str:
    """Append the traceback to a file in the run folder; return a phrase that says where, or why it could not be written."""
    import traceback

    path = os.path.join(config.run_dir, ERROR_LOG)
    try:
        make_folder(config.run_dir, PRIVATE)
        fd = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open(fd, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S%z')} netlib {' '.join(arguments)}\n{traceback.format_exc()}\n")
    except OSError as error:
        return f"its details could not be written to {path}: {error.strerror}"
    return f"its details are in {path}"
