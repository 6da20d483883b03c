"""Calls of plugin types in this process, and what containers see of them."""

import os
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cni_plugins.node import Node
from cni_plugins.skel import Outcome, answer
from cni_plugins.types import find_plugin_class
from netlib.core.controller import Controller

__all__ = ["Caller", "run"]


def run(*command: str) -> str:
    """What a command says; an error when it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Caller:
    """A runtime that calls plugins of ours for containers, each in a netns of its name."""

    def __init__(self, open_controller: Callable[[], Controller]) -> None:
        self._open_controller = open_controller
        self._netns: list[str] = []

    def container(self, name: str) -> str:
        """Make the netns of a container; its path."""
        run("ip", "netns", "add", name)
        self._netns.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        return f"/run/netns/{name}"

    def lose(self, name: str) -> None:
        """Delete a container's netns."""
        run("ip", "netns", "del", name)
        self._netns.remove(name)

    def clear(self) -> None:
        for name in list(self._netns):
            self.lose(name)

    def call(
        self, verb: str, config: Mapping[str, Any], container: str = "c1", ifname: str = "eth0", args: str = "", path: str = ""
    ) -> Outcome:
        """Call the plugin that *config* names."""
        netns = f"/run/netns/{container}"
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": path or "/usr/lib/cni",
            "CNI_ARGS": args,
        }
        return self.answer(config, environ)

    def answer(self, config: Mapping[str, Any], environ: Mapping[str, str]) -> Outcome:
        """Call the plugin that *config* names in that environment."""
        plugin = find_plugin_class(config["type"])
        assert plugin is not None
        netns = environ["CNI_NETNS"]
        fd = os.open(netns, os.O_RDONLY) if os.path.exists(netns) else None
        try:
            node = Node(self._open_controller, fd)
            return answer(plugin(node), environ, msgspec.json.encode(config), node.is_own_netns)
        finally:
            if fd is not None:
                os.close(fd)

    def ok(self, verb: str, config: Mapping[str, Any], container: str = "c1", **more: str) -> Any:
        """The decoded answer of a call that must succeed; None where it says nothing."""
        outcome = self.call(verb, config, container, **more)
        assert outcome.code == 0, outcome.stdout.decode()
        return msgspec.json.decode(outcome.stdout) if outcome.stdout else None

    def error(self, verb: str, config: Mapping[str, Any], container: str = "c1", **more: str) -> tuple[int, str]:
        """The code and the sentence of a call that must fail."""
        outcome = self.call(verb, config, container, **more)
        assert outcome.code == 1, outcome.stdout.decode()
        told = msgspec.json.decode(outcome.stdout)
        return told["code"], f"{told['msg']}; {told.get('details', '')}"

    def pings(self, container: str, address: str) -> bool:
        """Whether *address* answers the container within 2 s."""
        command = ["ip", "netns", "exec", container, "ping", "-c1", "-W2", address]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
