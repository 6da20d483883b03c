"""What a netns holds, as plain text by name: to find what is left over, and what somebody changed.

A snapshot has nothing that changes by itself: no counters, handles, ifindexes, lifetimes. Two of an unchanged netns are equal.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from netlib.errors import FeatureMissing, KernelError
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.sysctl import read_sysctl
from netlib.kernel.translate import doing
from netlib.model import HOST, NetnsRef

Snapshot = dict[str, dict[str, str]]
"""Section (links, addresses, routes, rules, firewall, sysctls) → name → description."""

_NFT_SECONDS = 20
_SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/route_localnet")
_LINK_SYSCTLS = (
    *(("ipv4", name) for name in ("route_localnet", "promote_secondaries")),
    *(("ipv6", name) for name in ("accept_ra", "forwarding", "disable_ipv6", "keep_addr_on_down")),
)
_VOLATILE = {"handle", "metainfo", "counter"}
_IPV6, _LOCAL_TABLE, _BY_KERNEL = 10, 255, 2
_CLONED = 0x200  # RTM_F_CLONED: a cached path, no route


def snapshot(netns: NetnsRef = HOST) -> Snapshot:
    """Take a snapshot of *netns*; FeatureMissing without the ``nft`` command."""
    with Kernel() as kernel:
        raw = kernel.rtnl(netns).raw
        with doing(f"look at {netns.label}"):
            links = kernel.rtnl(netns).links()
            names = {link.index: link.ifname for link in links}
            return {
                "links": {link.ifname: _link(link, names) for link in links},
                "addresses": dict(_address(address, names) for address in raw.get_addr()),
                "routes": dict(_route(route, names) for route in raw.get_routes() if not _is_derived(route)),
                "rules": dict(_rule(rule) for rule in raw.get_rules()),
                "firewall": dict(_ruleset(kernel, netns)),
                "sysctls": dict(_sysctls(kernel, netns, names.values())),
            }


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """The differences between two snapshots, a line each: ``links: + veth1 …``, ``- …`` or ``routes: default4: … → …``."""
    lines = []
    for section in sorted({*before, *after}):
        old, new = before.get(section, {}), after.get(section, {})
        for name in sorted({*old, *new}):
            if name not in new:
                lines.append(f"{section}: - {name} {old[name]}")
            elif name not in old:
                lines.append(f"{section}: + {name} {new[name]}")
            elif old[name] != new[name]:
                lines.append(f"{section}: {name}: {old[name]} → {new[name]}")
    return lines


def _link(link: LinkInfo, names: dict[int, str]) -> str:
    parts = [link.kind, "up" if link.up else "down", f"mtu {link.mtu}", f"mac {link.mac}"]
    if link.master:
        parts.append(f"master {names.get(link.master)}")
    if link.group:
        parts.append(f"group {link.group}")
    if link.alias:
        parts.append(f"alias {link.alias}")
    return " ".join(parts)


def _address(address: Any, names: dict[int, str]) -> tuple[str, str]:
    local = address.get("IFA_LOCAL") or address.get("IFA_ADDRESS")
    return f"{names.get(address['index'])} {local}/{address['prefixlen']}", f"scope {address['scope']}"


def _is_derived(route: Any) -> bool:
    """Whether the kernel derives *route* from an address. For IPv6 it does so a moment later: two snapshots would differ."""
    is_cached = bool(route["flags"] & _CLONED)
    return is_cached or (route["family"] == _IPV6 and route.get("RTA_TABLE") == _LOCAL_TABLE and route["proto"] == _BY_KERNEL)


def _route(route: Any, names: dict[int, str]) -> tuple[str, str]:
    family = 4 if route["family"] == 2 else 6
    destination = f"{route.get('RTA_DST')}/{route['dst_len']}" if route["dst_len"] else f"default{family}"
    link = names.get(route.get("RTA_OIF"), "")
    table, metric = route.get("RTA_TABLE"), route.get("RTA_PRIORITY") or 0
    # Of one destination, IPv6 keeps a route per link (fe80::/64): the link is part of the name.
    name = f"{destination} table {table} type {route['type']} metric {metric} dev {link}"
    hops = [f"{hop.get('RTA_GATEWAY')} dev {names.get(hop['oif'])}" for hop in route.get("RTA_MULTIPATH") or ()]
    via = ", ".join(hops) or route.get("RTA_GATEWAY") or "link"
    return name, f"via {via} proto {route['proto']} src {route.get('RTA_PREFSRC') or '-'}"


def _rule(rule: Any) -> tuple[str, str]:
    attributes = sorted((name, str(value)) for name, value in rule["attrs"] if name not in ("FRA_PRIORITY", "FRA_PROTOCOL"))
    text = " ".join(f"{name.removeprefix('FRA_').lower()} {value}" for name, value in attributes)
    return f"{rule['family']} {rule.get('FRA_PRIORITY') or 0} {text}", f"action {rule['action']} flags {rule['flags']}"


def _ruleset(kernel: Kernel, netns: NetnsRef) -> Iterator[tuple[str, str]]:
    """Each table, chain, set, map and rule of nf_tables, by its place."""
    nft = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if nft is None:
        raise FeatureMissing("the nft command is not installed; install the package nftables")
    with kernel.entered(netns):  # a child starts in the netns of the thread
        done = subprocess.run([nft, "-j", "-s", "list", "ruleset"], capture_output=True, check=False, timeout=_NFT_SECONDS)
    if done.returncode:
        raise KernelError(f"cannot list the nf_tables rules of {netns.label}: {done.stderr.decode(errors='replace').strip()}")
    places: dict[str, int] = {}
    for item in json.loads(done.stdout or b'{"nftables": []}')["nftables"]:
        ((kind, body),) = item.items()
        if kind == "metainfo":
            continue
        place = " ".join(str(body[part]) for part in ("family", "table", "chain", "name") if part in body)
        if kind == "rule":
            places[place] = places.get(place, 0) + 1
            place += f" #{places[place]}"
        yield f"{kind} {place}", json.dumps(_stable(body), sort_keys=True)


def _stable(body: Any) -> Any:
    """*body* without volatile values, and with its sets sorted: the kernel lists them by hash."""
    if isinstance(body, dict):
        stable = {key: _stable(value) for key, value in body.items() if key not in _VOLATILE}
        if isinstance(stable.get("elem"), list):
            stable["elem"].sort(key=lambda element: json.dumps(element, sort_keys=True))
        return stable
    if isinstance(body, list):
        return [_stable(value) for value in body]
    return body


def _sysctls(kernel: Kernel, netns: NetnsRef, ifnames: Any) -> Iterator[tuple[str, str]]:
    names = [*_SYSCTLS, *(f"net/{family}/conf/{ifname}/{setting}" for ifname in ifnames for family, setting in _LINK_SYSCTLS)]
    for name in sorted(names):
        value = read_sysctl(kernel, netns, name)
        if value is not None:
            yield name, value
