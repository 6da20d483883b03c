"""Two hosts alike, one for the reference plugins and one for ours, and how they are compared.

Ours is the test host itself, the other a netns. Each has containers ``1``, ``2`` … and an uplink ``up0`` to a machine outside.
What is bound to differ (names of veths, MAC addresses that nobody asked for, who set a route) is taken out before comparing.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cni_plugins.skel import Outcome
from netlib.core.controller import Controller
from netlib.kernel.netns import entered
from netlib.model import NetnsRef
from netlib.testing.snapshot import Snapshot, snapshot
from tests.cni.calling import Caller, run

__all__ = ["REFERENCE", "Twin", "outcome_of"]

REFERENCE = Path("/usr/lib/cni")
OUTSIDE = "198.51.100.2"
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
_MAC = re.compile(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b")
_VETH = re.compile(r"\bveth[0-9a-f]{7,8}\b")


class Twin:
    """One of the two hosts."""

    def __init__(self, name: str, home: NetnsRef, controller: Controller | None, data: Path) -> None:
        """*controller* None: the reference's executables do the calls."""
        self.name = name
        self.home = home
        self.data = data
        self._caller = Caller(lambda: controller) if controller is not None else None
        self._netns: list[str] = []

    def set_up(self, containers: int) -> None:
        """The machine outside, and empty containers."""
        self._make(self._outside)
        self._ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", self._outside)
        for where, dev, address in ((self.home.label, "up0", "198.51.100.1/24"), (self._outside, "eth0", f"{OUTSIDE}/24")):
            in_netns = [] if where == "host" else ["-n", where]
            run("ip", *in_netns, "addr", "add", address, "dev", dev)
            run("ip", *in_netns, "link", "set", dev, "up")
        for number in range(1, containers + 1):
            self._make(self.container(number))

    def clear(self) -> None:
        for name in self._netns:
            run("ip", "netns", "del", name)
        subprocess.run(["ip", "link", "del", "up0"], check=False, stderr=subprocess.DEVNULL)

    @property
    def _outside(self) -> str:
        return f"{self.name}-out"

    def _make(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._netns.append(name)

    def _ip(self, *words: str) -> None:
        run("ip", *([] if self.home.is_host else ["-n", self.home.label]), *words)

    def run(self, *command: str) -> None:
        """A command on this host."""
        with entered(self.home):
            run(*command)

    def container(self, number: int) -> str:
        """The name of a container's netns."""
        return f"{self.name}{number}"

    def call(self, verb: str, config: Mapping[str, Any], number: int, args: str = "") -> Outcome:
        """One call of the plugin that *config* names."""
        netns = self.container(number)
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"c{number}",
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(REFERENCE),
            "CNI_ARGS": args,
        }
        if self._caller is not None:
            return self._caller.answer(config, environ)
        with entered(self.home):
            done = subprocess.run(
                [str(REFERENCE / config["type"])],
                env=environ,
                input=json.dumps(config).encode(),
                capture_output=True,
                timeout=60,
            )
        return Outcome(done.stdout, done.returncode, done.stderr)

    def reaches(self, source: str, address: str) -> bool:
        """Whether *address* answers *source*: a container's number, ``host`` or ``out``."""
        home = {"host": self.home, "out": NetnsRef(f"/run/netns/{self._outside}")}
        netns = home.get(source) or NetnsRef(f"/run/netns/{self.container(int(source))}")
        with entered(netns):
            command = ["ping", "-c1", "-W2", address]
            return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def look(self, containers: int) -> dict[str, list[str]]:
        """What stands on the host and in each container."""
        seen = {"host": self._shown(snapshot(self.home), is_host=True)}
        for number in range(1, containers + 1):
            inside = snapshot(NetnsRef(f"/run/netns/{self.container(number)}"))
            seen[f"container {number}"] = self._shown(inside, is_host=False)
        return seen

    def _shown(self, found: Snapshot, *, is_host: bool) -> list[str]:
        lines = [f"link {name}: {self.plain(text)}" for name, text in found["links"].items()]
        lines += [f"address {name} {text}" for name, text in found["addresses"].items() if " fe80:" not in name]
        lines += [
            f"route {name} {re.sub(r' proto [0-9]+', '', text)}"
            for name, text in found["routes"].items()
            if not name.startswith(("fe80:", "ff00:")) and "table 255" not in name
        ]
        lines += [f"rule {name} {text}" for name, text in found["rules"].items()]
        if is_host:
            lines += [f"sysctl {name}={found['sysctls'].get(name)}" for name in _FORWARDING]
        return sorted(self.plain(line) for line in lines)

    def plain(self, text: str) -> str:
        """*text* without what is bound to differ from host to host."""
        text = re.sub(r" (alias|group) \S+", "", text)
        text = _VETH.sub("veth*", _MAC.sub(lambda mac: mac[0] if mac[0].startswith("02:11:00:00:00:") else "MAC", text))
        return text.replace(f"/run/netns/{self.name}", "/run/netns/").replace(str(self.data), "DATA")


def outcome_of(twin: Twin, outcome: Outcome) -> Any:
    """An answer to compare: the result; of an error only that it is one, for each has its own words and codes."""
    if outcome.code:
        return "an error"
    return json.loads(twin.plain(outcome.stdout.decode())) if outcome.stdout.strip() else None


def unlike(ours: Any, theirs: Any, allowed: Sequence[str]) -> list[str]:
    """Lines that one of two looks has and the other has not, but for those that match one of *allowed*."""
    differences = [f"ours only: {line}" for line in ours if line not in theirs]
    differences += [f"theirs only: {line}" for line in theirs if line not in ours]
    return [line for line in differences if not any(re.search(pattern, line) for pattern in allowed)]
