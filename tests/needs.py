"""What a test needs of the kernel: a test that this kernel cannot run is left to the virtual machine.

``needs_link_kind("ipvlan", "vlan")`` and ``needs_kernel("cgroup_v2_alone")`` say what a test needs; several marks add up.
Whether the kernel has it is tried, once in a session. ``vm`` says that a test runs in the virtual machine too, whatever it
needs. With ``NETLIB_VM`` set to the name of a boot, only that boot's tests are taken, and a need that is missing is an error:
there is nobody left to run them.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

from netlib.kernel.netns import NETNS_DIR, create_netns, delete_netns

BOOT = os.environ.get("NETLIB_VM", "")
_ORDINARY, _BARE = "ordinary", "bare"  # scripts/test-vm says what they are

_ON_PARENT = ("ip", "link", "add", "link", "parent", "name", "trial", "type")
_ALONE = ("ip", "link", "add", "trial", "type")
_LINK_KINDS: dict[str, tuple[str, ...]] = {
    "bridge_vlan_filtering": (*_ALONE, "bridge", "vlan_filtering", "1"),
    "dummy": (*_ALONE, "dummy"),
    "ipvlan": (*_ON_PARENT, "ipvlan"),
    "ipvtap": (*_ON_PARENT, "ipvtap"),
    "netem": ("tc", "qdisc", "add", "dev", "parent", "root", "netem", "delay", "1ms"),
    "vlan": (*_ON_PARENT, "vlan", "id", "5"),
    "vrf": (*_ALONE, "vrf", "table", "5"),
    "wireguard": (*_ALONE, "wireguard"),
}


def _cgroup_v2_alone() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def _no_ipv6() -> bool:
    return not Path("/proc/sys/net/ipv6").exists()


def _no_br_netfilter() -> bool:
    return not Path("/proc/sys/net/bridge").exists()


_KERNELS: dict[str, Callable[[], bool]] = {
    "cgroup_v2_alone": _cgroup_v2_alone,
    "no_br_netfilter": _no_br_netfilter,
    "no_ipv6": _no_ipv6,
}


@cache
def _has_link_kind(kind: str) -> bool:
    """Try to make such a link in a netns of its own."""
    path = NETNS_DIR / f"trial-{os.getpid()}"
    create_netns(path)
    inside = ("ip", "netns", "exec", path.name)
    try:
        subprocess.run([*inside, "ip", "link", "add", "parent", "type", "veth"], check=True)
        return subprocess.run([*inside, *_LINK_KINDS[kind]], check=False, capture_output=True).returncode == 0
    finally:
        delete_netns(path)


def needs_of(item: pytest.Item) -> set[str]:
    """What a test needs, by its marks; one that nobody knows ends the session."""
    needs = set()
    for mark, known in (("needs_link_kind", _LINK_KINDS), ("needs_kernel", _KERNELS)):
        for name in (name for marker in item.iter_markers(mark) for name in marker.args):
            if name not in known:
                raise pytest.UsageError(f"{item.nodeid}: {mark}({name!r}): known are {', '.join(sorted(known))}")
            needs.add(name)
    return needs


def missing(item: pytest.Item) -> list[str]:
    """What a test needs that this kernel has not."""
    return sorted(name for name in needs_of(item) if not (_has_link_kind(name) if name in _LINK_KINDS else _KERNELS[name]()))


def boots_of(item: pytest.Item) -> set[str]:
    """The virtual machine's boots that a test runs in."""
    needs = needs_of(item)
    marked = {name for marker in item.iter_markers("vm") for name in marker.args or (_ORDINARY,)}
    if unknown := marked - {_ORDINARY, _BARE}:
        raise pytest.UsageError(f"{item.nodeid}: vm({unknown.pop()!r}): known are {_BARE}, {_ORDINARY}")
    return marked | ({_BARE if "no_ipv6" in needs else _ORDINARY} if needs else set())


def left_to_vm(items: Iterable[pytest.Item]) -> dict[pytest.Item, list[str]]:
    """The tests that cannot run here, each with what is missing."""
    return {item: lacking for item in items if (lacking := missing(item))}


def closing_line(left: Iterable[list[str]]) -> str:
    """How many tests are left to the virtual machine, and for what."""
    reasons = [*left]
    counts = Counter(name for lacking in reasons for name in lacking)
    number = f"{len(reasons)} tests need" if len(reasons) != 1 else "1 test needs"
    return f"{number} the VM (make test-vm): {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}"
