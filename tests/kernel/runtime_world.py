"""What the tests of the runtime share: records of containers that go with the test, and commands run in the foreground."""

import json
import os
import subprocess
from contextlib import ExitStack
from typing import Any

from netlib.config import Config
from netlib.names import new_id
from netlib.runtime import attach
from netlib.runtime.container import Runtime
from netlib.runtime.spec import RECORD_SUFFIX, Container, ContainerSpec, ExecSpec

Answer = tuple[int, str, str]
"""Exit code, output, error output."""


def execute(runtime: Runtime, container: Container, wanted: ExecSpec, stdio: tuple[int, int, int] = (0, 1, 2)) -> int:
    """Run *wanted* in a container with these descriptors, as a client does; the exit code, as a shell would say it."""
    with runtime.exec_command(container, wanted) as (python, arguments):
        code = subprocess.run(
            arguments,
            executable=f"/proc/self/fd/{python}",
            env={},
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            close_fds=False,
            restore_signals=False,
            check=False,
        ).returncode
    return code if code >= 0 else 128 - code


class World:
    """One runtime without networks, and the containers that a test made in it."""

    def __init__(self, config: Config) -> None:
        self.runtime = Runtime(config, reap=lambda _: [])
        self._made: list[Container] = []

    def box(self, *command: str, **wanted: Any) -> Container:
        """The record of a container that does not run yet."""
        container_id = new_id()
        spec = ContainerSpec(command=command, **wanted)
        hostname = spec.hostname or container_id[:12]
        container = Container(id=container_id + RECORD_SUFFIX, name="box", created=0, spec=spec, hostname=hostname)
        self._made.append(container)
        return container

    def living(self, *command: str, **wanted: Any) -> Container:
        """A container that runs in the background."""
        container = self.box(*command, **wanted)
        self.runtime.launch(container)
        return container

    def ready(self, container: Container) -> None:
        """Wait until it has said "ready"."""
        for entry in self.runtime.logs(container, follows=True):
            if entry.log.strip() == "ready":
                return

    def minder(self, container: Container) -> int:
        """The process id of its minder."""
        return int(json.loads((self.runtime.folder(container) / "pid.json").read_text())["minder"])

    def run(self, *command: str, given: bytes | None = None, **wanted: Any) -> Answer:
        """Run a command in a new container in the foreground."""
        return self.foreground(self.box(*command, stdin=given is not None, **wanted), given)

    def foreground(self, container: Container, given: bytes | None = None) -> Answer:
        """Run a container in the foreground, with *given* as its input."""
        mine, theirs = attach.pair()
        with _Pipes(given) as pipes, mine, theirs:
            self.runtime.launch(container, client=theirs, size=(33, 99))
            theirs.close()
            code = attach.relay(
                mine,
                stdin=pipes.stdio[0] if given is not None else None,
                stdout=pipes.stdio[1],
                stderr=pipes.stdio[2],
                tty=container.spec.tty,
                forward=lambda number: self.runtime.kill(container, number),
            )
            return code, *pipes.read()

    def exec(self, container: Container, *command: str, given: bytes | None = None, **wanted: Any) -> Answer:
        """Run one more command in a container."""
        with _Pipes(given) as pipes:
            spec = ExecSpec(command=command, stdin=given is not None, **wanted)
            code = execute(self.runtime, container, spec, pipes.stdio)
            return code, *pipes.read()

    def clear(self) -> None:
        """End and remove every container."""
        with ExitStack() as stack:  # what one of them meets keeps no other one
            for container in self._made:
                stack.callback(self.runtime.remove, container)
                stack.callback(self.runtime.stop, container, 0)


class _Pipes:
    """Standard input with *given* in it, and what comes out of standard output and error."""

    def __init__(self, given: bytes | None) -> None:
        reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
        os.write(writes[0], given or b"")
        os.close(writes[0])
        self.stdio = (reads[0], writes[1], writes[2])
        self._outputs = reads[1:]
        self._open = {*self.stdio, *self._outputs}

    def read(self) -> tuple[str, str]:
        """All that was written."""
        for fd in self.stdio:
            os.close(fd)
        self._open = set()
        texts = []
        for fd in self._outputs:
            with open(fd, "rb") as pipe:
                texts.append(pipe.read().decode())
        return texts[0], texts[1]

    def __enter__(self) -> "_Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open:
            os.close(fd)
