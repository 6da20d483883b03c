"""``exec`` into a container that ends at that moment: one sentence at every step, and no process is left."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import Conflict, NotFound
from netlib.runtime.container import Runtime
from netlib.runtime.lookup import find_container, runtime
from netlib.runtime.spec import Container, ExecSpec
from netlib.verbs.call import call
from tests.kernel.runtime_world import World

pytestmark = pytest.mark.needs_cgroups
ROOT = Path(__file__).parents[2]
SENTENCE = "netlib: container 'box' is not running\n"

# Runs netlib.runtime.enter with one of its steps halted: it says "." on standard output, and goes on after a word of input.
_HALTED = """
import os, sys
sys.path.append(sys.argv[1])
from netlib.runtime import enter, process
moment = sys.argv.pop()
def halt():
    os.write(1, b".")
    os.read(0, 1)
setns, fork = process.setns, os.fork
def halted_setns(*arguments):
    if moment == "before it enters": halt()
    setns(*arguments)
    if moment == "before it forks": halt()
def halted_fork():
    pid = fork()
    if pid == 0 and moment == "after it forked": halt()
    return pid
process.setns, os.fork = halted_setns, halted_fork
enter.main()
"""


def kill(world: World, container: Container) -> None:
    """End the container and wait until its process 1 is gone."""
    pid = world.runtime.state(container).pid
    pidfd = os.pidfd_open(pid)
    world.runtime.kill(container)
    world.runtime.wait(container, 10)
    os.close(pidfd)


def test_before_its_process_is_found(world: World) -> None:
    container = world.living("sleep", "60")
    kill(world, container)
    with pytest.raises(Conflict, match="container 'box' is not running"):
        world.exec(container, "true")


@pytest.mark.parametrize("wanted", [{}, {"tty": True}, {"detach": True}], ids=["plain", "terminal", "detached"])
def test_between_its_process_was_found_and_entered(world: World, wanted: dict[str, Any]) -> None:
    container = world.living("sleep", "60")
    with world.runtime.exec_command(container, ExecSpec(command=("true",), **wanted)) as (python, arguments):
        kill(world, container)
        program = f"/proc/self/fd/{python}"
        done = subprocess.run(
            arguments,
            executable=program,
            env={},
            close_fds=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", SENTENCE)


@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("moment", ["before it enters", "before it forks", "after it forked"])
def test_at_each_step_of_entering(world: World, moment: str, detach: bool) -> None:
    container = world.living("sleep", "60")
    with world.runtime.exec_command(container, ExecSpec(command=("echo", "run"), detach=detach)) as (_, arguments):
        halted = [arguments[0], "-IS", "-c", _HALTED, *arguments[4:], moment]
        with subprocess.Popen(
            halted, env={}, close_fds=False, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as entering:
            assert entering.stdout is not None
            assert entering.stdout.read(1) == "."
            os.kill(world.runtime.state(container).pid, signal.SIGKILL)
            if moment == "after it forked":  # the child is killed with the container, whose end waits for the child's
                entering.wait(10)
            else:
                world.runtime.wait(container, 10)
            told = entering.communicate("go", timeout=10)
    assert (entering.returncode, told) == (1, ("", SENTENCE))


def test_a_command_that_was_running_ends_as_it_was_killed(world: World) -> None:
    container = world.living("sleep", "60")
    with world.runtime.exec_command(container, ExecSpec(command=("sh", "-c", "echo begun; exec sleep 60"))) as (
        python,
        arguments,
    ):
        program = f"/proc/self/fd/{python}"
        with subprocess.Popen(
            arguments, executable=program, env={}, close_fds=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"begun\n"
            os.kill(world.runtime.state(container).pid, signal.SIGKILL)
            assert (running.wait(10), running.communicate()) == (137, (b"", b""))


def test_a_command_that_is_not_there_is_told_without_delay(world: World) -> None:
    container = world.living("sleep", "60")
    assert world.exec(container, "no-such-command")[0] == 127


def test_whenever_it_ends(config: Config, cycles: Callable[[int], int]) -> None:
    """By the command line, against a container that is killed a little later each time."""
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Controller(config, watcher=Unwatched()) as controller:
        for number in range(cycles(500)):
            call(config, "container.run", {"command": ["sleep", "60"], "name": "box", "networks": ["none"]})
            box = find_container(controller, "box")
            ending = threading.Timer(0.02 * (number % 15), _end, (runtime(controller), box))
            ending.start()
            command = [sys.executable, "-P", "-m", "netlib", *folders, "exec", "box", "sleep", "60"]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20
            )
            ending.join()
            assert (done.returncode, done.stderr) in ((1, SENTENCE), (137, "")), done
            call(config, "container.rm", {"names": ["box"], "force": True})
        with pytest.raises(NotFound):
            find_container(controller, "box")
        controller.reset()


def _end(where: Runtime, container: Container) -> None:
    where.kill(container)
