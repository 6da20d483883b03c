"""Launchers as a runtime calls them, and a netlibd of one thread to answer them."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cni_plugins.skel import Outcome
from netlib.config import Config
from netlib.daemon.dialects import Request
from netlib.daemon.fastpath import ControlServer
from netlib.wire.protocol import at_socket

PATIENCE = 60.0


def environment(config: Config, variables: Mapping[str, str]) -> dict[str, str]:
    """What a runtime passes on, and where netlibd is."""
    folders = {"NETLIB_STATE_DIR": str(config.state_dir), "NETLIB_RUN_DIR": str(config.run_dir)}
    return {"PATH": os.environ["PATH"], **folders, **variables}


def run(path: Path, environ: Mapping[str, str], stdin: bytes = b"", prefix: Sequence[str] = (), **options: Any) -> Outcome:
    """One call, behind a command such as ``unshare`` where *prefix* names one; *options* are subprocess.run's."""
    done = subprocess.run(
        [*prefix, path], env=dict(environ), input=stdin, capture_output=True, timeout=PATIENCE, check=False, **options
    )
    return Outcome(done.stdout, done.returncode, done.stderr)


@contextmanager
def listening(config: Config) -> Iterator[socket.socket]:
    """A socket where netlibd's would be."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        at_socket(config.socket_path, listener.bind)
        listener.listen()
        yield listener


@contextmanager
def serving(config: Config, handle: Callable[[Request], Any], version: str = "0.0.1") -> Iterator[None]:
    """netlibd's own control socket, with *handle* for its work."""
    with listening(config) as listener:
        server = ControlServer(listener, handle, version)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield
        finally:
            server.stop()
            thread.join()
            server.close()


def check_at_once(paths: Sequence[Path], environ: Mapping[str, str], count: int) -> None:
    """*count* ADDs of static at the same time, by all of *paths* in turn: each gets the address that it asked for."""
    outcomes: dict[int, Outcome] = {}
    stdin = b'{"cniVersion": "1.1.0", "name": "pods", "ipam": {}}'

    def one(number: int) -> None:
        own = {"CNI_CONTAINERID": f"c{number}", "CNI_ARGS": f"IP=10.1.0.{number}/24"}
        outcomes[number] = run(paths[number % len(paths)], {**environ, **own}, stdin)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(count):
        outcome = outcomes[number]
        assert (outcome.code, outcome.stderr) == (0, b""), outcome
        assert json.loads(outcome.stdout)["ips"] == [{"address": f"10.1.0.{number}/24"}]
