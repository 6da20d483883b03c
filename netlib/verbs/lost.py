"""``netlib system reset --lost``: removing what netlib made when its store is damaged or deleted, by tags instead of records.

One rule: only what is certainly ours is removed. Containers are of this state folder, as their minders' arguments say. Kernel
objects carry the tag of a store that this folder had or that a person named. Objects that may be ours are left, and a line
tells how to remove them.
"""

import os
import re
import select
import signal
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.core.host import require_root
from netlib.core.traces import CONTAINER_ID, container_folders, container_of_minder, listed, minders, written_minder
from netlib.errors import (
    ConfigError,
    DiskFull,
    KernelError,
    NetlibError,
    StoreDamaged,
    StoreLost,
    TeardownError,
    WrongHost,
)
from netlib.firewall.backend import firewall
from netlib.firewall.objects import ForwardAllowance
from netlib.kernel.files import Folder
from netlib.kernel.handle import Kernel
from netlib.kernel.links import remove_links
from netlib.kernel.netns import NETNS_DIR, NETNS_FILES_DIR, boot_id, current_identity, pinned_netns
from netlib.kernel.owned_netns import OwnedNetns
from netlib.kernel.sysctl import read_sysctl
from netlib.model import HOST, NetnsRef
from netlib.runtime.container import Runtime
from netlib.store.backup import set_aside
from netlib.store.generation import Generation
from netlib.store.tags import forget_tags, store_of, tags_of
from netlib.verbs.call import call
from netlib.verbs.perform import perform
from netlib.wire.client import leave

__all__ = ["reset_lost", "reset_on_full_disk", "strays"]

_TAG = re.compile(r"[0-9a-f]{6}")
_KILL_SECONDS = 10.0
_BOUND_BY_IP_NETNS = ("resolv.conf", "hosts")
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def reset_lost(config: Config, stores: Sequence[str] = ()) -> Iterator[str]:
    """Remove everything that was made from this state folder, whether its store is readable or not.

    Yields a line for each kind of thing that was removed or left. A readable store is reset by its records, a damaged one is
    renamed. Then everything is removed that carries the tag of a store which this folder had since the boot, or one of
    *stores* (tags). Raises ConfigError, NotPermitted, WrongHost before anything is changed, and at the end a TeardownError
    that lists what could not be removed.
    """
    for store in stores:
        if not _TAG.fullmatch(store):
            raise ConfigError(f"--store {store!r} is no store's tag: six hexadecimal digits, as in an alias netlib:1a2b3c:…")
    require_root()
    tags, here = tags_of(config), current_identity()
    if any(place != here for place in tags.values()):
        raise WrongHost(
            f"the stores of {config.state_dir} described another network namespace than this one; "
            "reset them from there, or, where that is gone, delete the folder"
        )
    is_stuck = is_damaged = False
    try:
        is_damaged = not _reset(config)
    except TeardownError:
        # Objects of a lost store may block the removal of ours (a bridge port, say): it is tried again after those are removed.
        is_stuck = True
    leave(config)
    if is_damaged:
        yield f"set aside: {set_aside(config.state_dir / 'netlib.db', 'damaged')}"
    failures: list[NetlibError] = []
    ended = _remove_containers(config, failures)
    if ended:
        yield f"removed: containers ({ended})"
    with Kernel() as kernel:
        yield from _clear_kernel(kernel, config, {*tags, *stores}, failures)
        yield from _clear_files(kernel, config, failures)
        if is_stuck:
            _reset(config)
            leave(config)
        yield from _report_sysctls(kernel)
    if failures:
        raise TeardownError(failures)
    for folder in (config.state_dir, config.memory_dir):
        forget_tags(folder)
    Generation(config.memory_dir, boot_id()).settle(0)


def strays(config: Config) -> Iterator[str]:
    """Yield a line for each other store with objects in the kernel, and how to remove them; called after a usual reset."""
    with Kernel() as kernel:
        yield from _clear_kernel(kernel, config, (), [])
    if folders := container_folders(config):
        yield (
            f"left: the files of containers ({len(folders)}) that the store does not know, in {config.container_dir}; "
            "if nobody needs them any more: netlib system reset --lost"
        )


def reset_on_full_disk(config: Config) -> None:
    """Reset a store that the full disk does not let SQLite open: deleting the containers' files first makes room."""
    _remove_containers(config, [])
    call(config, "system.reset", {})


def _reset(config: Config) -> bool:
    """Reset the store by its records; False when it is damaged. An older copy of it is reset as far as it has records."""
    try:
        try:
            call(config, "system.reset", {})
        except DiskFull:
            reset_on_full_disk(config)
        except StoreLost:
            leave(config)
            with Controller(config, watcher=Unwatched(), despite_loss=True) as controller:
                perform(controller, "system.reset", {})
    except StoreDamaged:
        return False
    return True


# --- containers ----------------------------------------------------------------------------------------------------------


def _remove_containers(config: Config, failures: list[NetlibError]) -> int:
    """Kill all containers of this state folder and delete their files, with or without records; return their number."""
    running = minders(config.container_dir)
    folders = (config.container_dir, config.run_dir / "containers")
    found = {item.name for folder in folders if folder.is_dir() for item in folder.iterdir()} | running.keys()
    runtime = Runtime(config)
    container_ids = sorted(name for name in found if CONTAINER_ID.fullmatch(name))
    for container_id in container_ids:
        try:
            if container_id in running:
                _kill(running[container_id], config.container_dir, container_id)
            runtime.sweep(container_id)
        except NetlibError as error:
            failures.append(error)
    return len(container_ids)


def _kill(pid: int, folder: Path, container_id: str) -> None:
    """Kill a minder, and with it its container; KernelError when it has not ended after 10 seconds."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Checked again with the pidfd open: if the process with this pid is the minder now, the pidfd is the minder's.
        if container_id != container_of_minder(pid, folder) and written_minder(folder / container_id) != pid:
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not select.select([pidfd], [], [], _KILL_SECONDS)[0]:
            raise KernelError(
                f"the minder of container {container_id[:12]} (process {pid}) did not end within {_KILL_SECONDS:g} seconds of "
                f"SIGKILL; see /proc/{pid}/stack for what it waits for, and reset again when it has ended"
            )
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


# --- the kernel ----------------------------------------------------------------------------------------------------------


def _clear_kernel(kernel: Kernel, config: Config, tags: Collection[str], failures: list[NetlibError]) -> Iterator[str]:
    """Remove the firewall entries, links and netns with one of *tags*; yield a line for each other store that has some."""
    others: Counter[str] = Counter()
    for clear in (_clear_firewall, _clear_links, partial(_clear_netns, config.run_dir)):
        try:
            yield from clear(kernel, tags, others)
        except TeardownError as error:
            failures.extend(error.failures)
        except NetlibError as error:
            failures.append(error)
    own = tags_of(config)
    for store, count in sorted(others.items()):
        what = f"left: links, namespaces and firewall entries ({count}) of the store {store}"
        if store in own:
            yield f"{what}, which no record of this state folder knows: netlib system reset --lost"
        else:
            yield f"{what}, which this state folder has not had; if it is lost too: netlib system reset --lost --store {store}"


def _clear_firewall(kernel: Kernel, tags: Collection[str], others: Counter[str]) -> Iterator[str]:
    rules = firewall(kernel)
    present = rules.list_ours()
    mine = [item for item in present if store_of(item.tag) in tags]
    others.update(store_of(item.tag) for item in present if item not in mine)
    bridges = [bridge for bridge, tag in rules.bridges().items() if store_of(tag) in tags]
    rules.discard(mine)
    rules.remove([ForwardAllowance(bridge=bridge) for bridge in bridges])
    if mine:
        yield f"removed: firewall entries ({len(mine)})"
    if tags and len(mine) == len(present):  # without tags nothing is removed: an empty table may be another store's
        for table in rules.tables():
            table.remove(kernel)
        if rules.listing():
            yield f"left: your rules in {rules.user_rules}"


def _clear_links(kernel: Kernel, tags: Collection[str], others: Counter[str]) -> Iterator[str]:
    yield from _clear_links_of(kernel, HOST, tags, others)


def _clear_links_of(kernel: Kernel, netns: NetnsRef, tags: Collection[str], others: Counter[str]) -> Iterator[str]:
    tagged = [(link.ifname, store_of(link.alias)) for link in kernel.rtnl(netns).links() if link.ifname != "lo"]
    mine = [ifname for ifname, store in tagged if store in tags]
    others.update(store for _, store in tagged if store and store not in tags)
    if mine:
        remove_links(kernel, mine, netns)
        yield f"removed: links {listed(mine)}{'' if netns.is_host else f' in {netns.label}'}"


def _clear_netns(run_dir: Path, kernel: Kernel, tags: Collection[str], others: Counter[str]) -> Iterator[str]:
    """Remove the netns whose ``lo`` carries one of *tags*; in other netns (a CNI runtime's, say) only links that carry one."""
    for netns in pinned_netns(run_dir):
        try:
            store = store_of(kernel.rtnl(netns).get_link("lo").alias)
        except KernelError:  # the netns was deleted meanwhile
            continue
        if store in tags:
            OwnedNetns(path=netns.path, identity=netns.identity).remove(kernel)
            yield f"removed: network namespace {Path(netns.path).name}"
            continue
        if store:
            others[store] += 1
        yield from _clear_links_of(kernel, netns, tags, others)
        kernel.forget(netns)


# --- files and settings --------------------------------------------------------------------------------------------------


def _clear_files(kernel: Kernel, config: Config, failures: list[NetlibError]) -> Iterator[str]:
    """Remove the files of sandboxes, and their copies for ``ip netns exec`` in /etc/netns where the text is the same.

    A folder of /etc/netns with other text, of a netns that does not exist, may be somebody else's: it is left, with a line.
    """
    sandbox_folders = sorted(config.sandbox_dir.iterdir()) if config.sandbox_dir.is_dir() else []
    texts = [_texts(folder) for folder in sandbox_folders]
    for folder in sorted(NETNS_FILES_DIR.iterdir()) if NETNS_FILES_DIR.is_dir() else ():
        if (NETNS_DIR / folder.name).exists():
            continue
        if _texts(folder) in texts and {item.name for item in folder.iterdir()} == set(_BOUND_BY_IP_NETNS):
            _remove_folder(kernel, folder, failures)
        else:
            yield f"left: {folder}, of no network namespace there is; delete it if it is not yours"
    for folder in sandbox_folders:
        _remove_folder(kernel, folder, failures)


def _texts(folder: Path) -> list[bytes]:
    """Return the text of the files in *folder* that ``ip netns exec`` binds over /etc; empty where one is missing."""
    try:
        return [(folder / name).read_bytes() for name in _BOUND_BY_IP_NETNS]
    except OSError:
        return []


def _remove_folder(kernel: Kernel, folder: Path, failures: list[NetlibError]) -> None:
    try:
        Folder(path=str(folder)).remove(kernel)
    except NetlibError as error:
        failures.append(error)


def _report_sysctls(kernel: Kernel) -> Iterator[str]:
    """Yield a line for sysctls that netlib may have set: their former values were in the lost store, so they are left."""
    on = [name for name in _FORWARDING if read_sysctl(kernel, HOST, name) == "1"]
    if on:
        yield (
            f"left: forwarding is on, and whether it was before netlib is not known; if nothing else needs it: "
            f"sysctl -w {' '.join(f'{name}=0' for name in on)}"
        )
    conf = Path("/proc/sys/net/ipv6/conf")
    accepting = [name.parent.name for name in conf.glob("*/accept_ra") if name.read_text() == "2\n"]
    if accepting:
        links = ", ".join(sorted(accepting))
        yield f"left: accept_ra is 2 on {links}, to hear routers while forwarding is on; where netlib set it, it was 1"
