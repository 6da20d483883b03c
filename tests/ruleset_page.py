"""The listings in ``docs/ruleset.md``: the nftables ruleset of one fixed host, as the kernel has it. ``make docs`` writes them.

The page's sentences are written by hand, its listings by this module. One rule: each table and each chain that is loaded has a
heading, and each heading its table or chain. What is random (ids, the store's tag, the resolver's port) is replaced by a name
in angle brackets, and the entries of a set are put in order, because the kernel lists them by a random hash.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from netlib.config import Config
from netlib.core.controller import Controller
from netlib.names import veth_ifname
from netlib.ports import parse_publish
from netlib.wire.client import leave
from tests.cni.calling import Caller, run

PAGE = Path(__file__).parents[1] / "docs" / "ruleset.md"

_HOLDERS = "Sets and maps"
_BRIDGE_NAME = "com.docker.network.bridge.name"
_ICC = "com.docker.network.bridge.enable_icc"
_FOREIGN = "ip filter"
_CNI = {"cniVersion": "1.0.0", "name": "pods"}
_CNI_PLUGINS = (
    {
        **_CNI,
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {"type": "static", "addresses": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]},
    },
    {
        **_CNI,
        "type": "portmap",
        "conditionsV4": ["-s", "192.0.2.0/24"],
        "runtimeConfig": {"portMappings": [{"hostPort": 9090, "containerPort": 90, "protocol": "tcp"}]},
    },
    {**_CNI, "type": "firewall"},
)

_RANDOM = (
    (r" # progname .*", ""),
    (r"counter packets \d+ bytes \d+", "counter packets <number> bytes <number>"),
    (r"netlib-guests-\d+-[0-9a-f]{4}", "netlib-guests-<process>"),
    (r'"netlib:[0-9a-f]{6}:[0-9a-f]{12}', '"netlib:<store>:<record>'),
    (r"\bwhen_[0-9a-f]{12}", "when_<conditions>"),
    (r"\([0-9a-f]{8}\)", "(<digest>)"),
    (r"(dnat to 127\.0\.0\.11):\d+", r"\1:<port>"),
)
"""Patterns of what differs from run to run, and what is put there."""


class Part(NamedTuple):
    """A set, map or chain of a listing."""

    kind: str
    name: str
    text: str


@contextmanager
def host(config: Config) -> Iterator[dict[str, str]]:
    """The host that the page describes; its links' random names with what stands for them. All of it is removed afterwards."""
    run("nft", f"add table {_FOREIGN}; add chain {_FOREIGN} FORWARD {{ type filter hook forward priority 0; policy drop; }}")
    with Controller(config) as controller:
        caller = Caller(lambda: controller)
        try:
            yield _made(controller, caller)
        finally:
            caller.clear()
            controller.reset()
            leave(config)
            run("nft", f"delete table {_FOREIGN}")


def _made(controller: Controller, caller: Caller) -> dict[str, str]:
    def network(name: str, *subnets: str, internal: bool = False, icc: bool = True) -> None:
        options = {_BRIDGE_NAME: f"br-{name}", _ICC: str(icc).lower()}
        controller.create_network(name, subnets=subnets, internal=internal, options=options)

    network("web", "10.1.0.0/24", "fd00:1::/64")
    network("inner", "10.2.0.0/24", internal=True)
    network("apart", "10.3.0.0/24", icc=False)
    for name in ("shop", "clerk", "loner"):
        controller.create_sandbox(name)
    controller.create_sandbox("guest", netns=caller.container("guest"))
    ports = [*parse_publish("8080:80"), *parse_publish("127.0.0.1:8443:443")]
    members = {
        "shop": controller.connect("web", "shop", ip="10.1.0.10", ip6="fd00:1::10", ports=ports),
        "guest": controller.connect("web", "guest", ip="10.1.0.2", ip6="fd00:1::2"),
        "clerk": controller.connect("inner", "clerk"),
        "loner": controller.connect("apart", "loner"),
    }
    caller.container("pod")
    result: dict[str, object] = {}
    for plugin in _CNI_PLUGINS:
        result = caller.ok("ADD", {**plugin, "prevResult": result} if result else plugin, "pod")
    return {veth_ifname(endpoint.id): f"<veth of {name}>" for name, endpoint in members.items()}


def page(config: Config) -> str:
    """The page as it should be now; LookupError when a heading, or what it is about, is missing."""
    with host(config) as names:
        listing = run("nft", "list", "ruleset") + run("ip", "netns", "exec", "shop", "nft", "list", "ruleset")
    return filled(PAGE.read_text(), dict(listings(stable(listing, names))))


def filled(text: str, found: Mapping[tuple[str, str], str]) -> str:
    """The page *text* with each listing replaced by the one of its table and part in *found*."""
    used = []

    def section(match: re.Match[str]) -> str:
        table = re.findall(r"^## Table `(.+)`$", text[: match.start()], re.MULTILINE)[-1]
        used.append((table, match["part"]))
        return f"{match['before']}{found.get(used[-1], '')}```\n"

    heading = rf"^### (?:Chain `)?(?P<part>{_HOLDERS}|(?<=`)[^`]+)`?$"
    result = re.sub(rf"(?P<before>{heading}[^#]*?^```\n).*?^```\n", section, text, flags=re.MULTILINE | re.DOTALL)
    if differing := [" ".join(key) for key in found.keys() ^ used]:
        raise LookupError(
            f"{PAGE.name} has no section for what is loaded, or one for what is not: {', '.join(sorted(differing))}"
        )
    return result


def listings(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    """By table and part, what the page shows of a listing: each chain, and the sets and maps of a table together."""
    for table, body in re.findall(r"^table ([^\n]+) \{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL):
        found = re.findall(r"^(\t(set|map|chain) (\S+) \{\n.*?^\t\}\n)", body, re.MULTILINE | re.DOTALL)
        parts = [Part(kind, name, _unindented(part)) for part, kind, name in found]
        if holders := [part for part in parts if part.kind != "chain"]:
            yield (table, _HOLDERS), _listed(holders)
        yield from (((table, part.name), part.text) for part in parts if part.kind == "chain")


def _listed(holders: Iterable[Part]) -> str:
    """Sets and maps, those without entries by their names."""
    full = "".join(part.text for part in holders if "elements" in part.text)
    empty = [part.name for part in holders if "elements" not in part.text]
    return full + (f"# without entries here: {', '.join(empty)}\n" if empty else "")


def stable(listing: str, names: Mapping[str, str]) -> str:
    """The listing without what differs from run to run, among it the link *names*."""
    for word, name in names.items():
        listing = listing.replace(word, name)
    for pattern, put in _RANDOM:
        listing = re.sub(pattern, put, listing)
    return re.sub(r"elements = \{ ([^}]*) \}", _in_order, listing)


def _in_order(match: re.Match[str]) -> str:
    """The entries of one set, a line each."""
    return "elements = {\n" + "".join(f"\t\t\t{entry},\n" for entry in sorted(re.split(r",\s+", match[1]))) + "\t\t}"


def _unindented(text: str) -> str:
    """As it is inside of its table, with four blanks for a tab."""
    return re.sub(r"^\t", "", text, flags=re.MULTILINE).expandtabs(4)


def main() -> int:
    """Write the listings into the page."""
    if os.environ.get("NETLIB_TESTHOST") != os.readlink("/proc/self/ns/net"):
        sys.stderr.write("tests.ruleset_page: this changes the network: run it by `make docs`\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(Config(Path(folder) / "state", Path(folder) / "run")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
