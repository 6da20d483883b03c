"""A runtime's side of CNI, as libcni has it: a list of plugins is called in order, each with the result before it.

The results of ADD are kept for CHECK and DEL, which goes through the list backwards.
"""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["REFERENCE", "PluginError", "Runtime"]

REFERENCE = Path("/usr/lib/cni")
_SECONDS = 30


class PluginError(Exception):
    """A plugin ended with an error; its code and words."""

    def __init__(self, kind: str, verb: str, code: int, words: str) -> None:
        super().__init__(f"{kind} {verb}: code {code}: {words}")
        self.code = code


class Runtime:
    """A network of the test host, given as a conflist. The containers' netns are at ``/run/netns/<container>``."""

    def __init__(self, conflist: Mapping[str, Any], *folders: Path, places: Mapping[str, Path] | None = None) -> None:
        """Plugins are sought in *folders*, which are CNI_PATH; those of a type in *places* in that folder first."""
        self.conflist = conflist
        self.folders = folders
        self._places = places or {}
        self.results: dict[str, Any] = {}

    def add(self, container: str, **capabilities: Any) -> Any:
        """Attach a container; the result."""
        result = None
        for plugin in self.conflist["plugins"]:
            result = self._call("ADD", plugin, container, capabilities, result)
        self.results[container] = result
        return result

    def address(self, container: str) -> str:
        """The first address of a container that was added."""
        return str(self.results[container]["ips"][0]["address"]).partition("/")[0]

    def check(self, container: str, **capabilities: Any) -> None:
        """Raise PluginError when something differs from what ADD made.

        The reference's portmap is not asked: it looks for chains of IPv6 that it never made.
        """
        for plugin in self.conflist["plugins"]:
            if self._places.get(plugin["type"]) != REFERENCE or plugin["type"] != "portmap":
                self._call("CHECK", plugin, container, capabilities, self.results[container])

    def delete(self, container: str, **capabilities: Any) -> None:
        """Detach a container."""
        for plugin in reversed(self.conflist["plugins"]):
            self._call("DEL", plugin, container, capabilities, self.results.get(container))

    def collect(self, valid: Iterable[str]) -> None:
        """GC: take away what belongs to no container of *valid*."""
        attachments = [{"containerID": container, "ifname": "eth0"} for container in valid]
        for plugin in self.conflist["plugins"]:
            self._call("GC", {**plugin, "cni.dev/valid-attachments": attachments}, "", {}, None)

    def _call(
        self, verb: str, plugin: Mapping[str, Any], container: str, capabilities: Mapping[str, Any], previous: Any
    ) -> Any:
        able = {name: value for name, value in capabilities.items() if plugin.get("capabilities", {}).get(name)}
        config = {**plugin, "cniVersion": self.conflist["cniVersion"], "name": self.conflist["name"]}
        if able:
            config["runtimeConfig"] = able
        if previous is not None:
            config["prevResult"] = previous
        done = subprocess.run(
            [self._find(plugin["type"])],
            env=self._environ(verb, container),
            input=json.dumps(config).encode(),
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
        answer = json.loads(done.stdout) if done.stdout else {}
        if done.returncode:
            words = f"{answer.get('msg')}; {answer.get('details')}; {done.stderr.decode()}"
            raise PluginError(plugin["type"], verb, answer.get("code", 0), words)
        return answer

    def _environ(self, verb: str, container: str) -> dict[str, str]:
        folders = ":".join(map(str, self.folders))
        environ = {"PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_PATH": folders}
        if container:
            netns = f"/run/netns/{container}"
            environ |= {"CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
            environ["CNI_NETNS"] = netns if os.path.exists(netns) else ""
        return environ

    def _find(self, kind: str) -> str:
        places = [self._places[kind]] if kind in self._places else self.folders
        return next(str(folder / kind) for folder in places if (folder / kind).exists())
