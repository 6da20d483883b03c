"""``python -m benchmarks.calls``: how many Python functions one connect and one warm CNI ADD call, and whose they are.

A count says what the structure costs, whatever else the machine does; :mod:`benchmarks.compare` says what it costs in time. It
runs in a test host, and with any commit since 11f308c on PYTHONPATH: ``python benchmarks/calls.py``.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path.pop(0)  # this file's own folder: netlib is to be found by PYTHONPATH

from cni_plugins.node import Node
from cni_plugins.run import perform
from netlib import Config, Controller
from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns

_WARM = 3
_MODULES = 12


def _unwatched() -> Any:
    for module in ("netlib.core.controller", "netlib.controller"):
        with suppress(ImportError):
            return import_module(module).Unwatched()
    raise SystemExit("no netlib on the path")


def counted(action: Callable[[], object]) -> Counter[str]:
    """How many Python functions *action* calls, by file; generators and comprehensions count each time they are entered."""
    found: Counter[str] = Counter()

    def observe(frame: Any, event: str, _: object) -> None:
        if event == "call":
            found["/".join(Path(frame.f_code.co_filename).parts[-3:])] += 1

    sys.setprofile(observe)
    try:
        action()
    finally:
        sys.setprofile(None)
    return found


def _report(name: str, found: Counter[str]) -> None:
    total = found.total()
    print(f"{name}: {total} calls")
    for file, count in found.most_common(_MODULES):
        print(f"  {count:6d}  {count / total:5.1%}  {file}")


def measure(folder: Path) -> dict[str, Counter[str]]:
    """The counts of both, each after some that warm up what is kept."""
    netns = NETNS_DIR / "counted"
    ipam = {"type": "host-local", "subnet": "10.31.0.0/16", "dataDir": str(folder / "leases")}
    bridge = {"type": "bridge", "bridge": "counted", "isGateway": True, "ipMasq": True, "ipam": ipam}
    configuration = json.dumps({"cniVersion": "1.0.0", "name": "counted", **bridge}).encode()
    environ = {"CNI_CONTAINERID": "c1", "CNI_NETNS": str(netns), "CNI_IFNAME": "eth0", "CNI_PATH": str(folder)}
    found: dict[str, Counter[str]] = {}
    config = Config(state_dir=folder / "state", run_dir=folder / "run")
    create_netns(netns)
    with Controller(config, watcher=_unwatched()) as controller, open(netns, "rb") as lent:
        controller.create_network("net")
        controller.create_sandbox("box")

        def call(verb: str) -> None:
            node = Node(lambda: controller, os.dup(lent.fileno()), lambda: True)
            outcome = perform("bridge", {**environ, "CNI_COMMAND": verb}, configuration, node)
            if outcome.code:
                raise SystemExit(f"{verb}: {outcome.stdout!r}")

        for _ in range(_WARM):
            found["connect"] = counted(lambda: controller.connect("net", "box"))
            controller.disconnect("net", "box")
            found["warm ADD"] = counted(lambda: call("ADD"))
            call("DEL")
        controller.remove_network("net")
        controller.reset()
    delete_netns(netns)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for subject, counts in measure(Path(scratch)).items():
            _report(subject, counts)
