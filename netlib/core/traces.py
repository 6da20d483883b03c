"""Traces of a store's records outside the store: containers' files and minders, and objects in the kernel with the store's tag.

A minder is the parent process of a container's command. A store that is new, or an older copy, is recognised by traces of which
it has no records. The functions here change nothing.
"""

import json
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from netlib.config import Config
from netlib.errors import KernelError
from netlib.firewall.backend import firewall
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import boot_id, pinned_netns
from netlib.model import HOST, NetnsRef
from netlib.store.tags import store_of

__all__ = ["CONTAINER_ID", "container_folders", "container_of_minder", "listed", "minders", "traces", "written_minder"]

_MOST_NAMES = 10  # in a sentence
CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_MINDER = "from netlib.runtime.shim import main"  # in the command line of every minder: netlib.runtime.launch


def traces(config: Config, tags: Collection[str]) -> list[str]:
    """Count the traces of *config*'s containers and of objects with one of *tags*; a phrase for each kind ("2 links")."""
    found = []
    if running := len(minders(config.container_dir)):
        found.append(f"{running} running container{'' if running == 1 else 's'}")
    if folders := len(container_folders(config)):
        found.append(f"the files of {folders} container{'' if folders == 1 else 's'}")
    with Kernel() as kernel:
        if count := _tagged_links(kernel, HOST, tags):
            found.append(f"{count} link{'' if count == 1 else 's'}")
        if count := _tagged_netns(kernel, config, tags):
            found.append(f"{count} network namespace{'' if count == 1 else 's'}")
        if count := sum(store_of(item.tag) in tags for item in firewall(kernel).list_ours()) if tags else 0:
            found.append(f"{count} firewall entr{'y' if count == 1 else 'ies'}")
    return found


def container_folders(config: Config) -> set[str]:
    """The ids of all containers with a folder of files, with or without a record."""
    folder = config.container_dir
    return {item.name for item in folder.iterdir() if CONTAINER_ID.fullmatch(item.name)} if folder.is_dir() else set()


def minders(folder: Path) -> dict[str, int]:
    """The pid of each running minder by its container's id, for containers with files in *folder*, deleted files included."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if CONTAINER_ID.fullmatch(path.name) and (pid := written_minder(path)):
            found[path.name] = pid
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if container_id := container_of_minder(pid, folder):
            found[container_id] = pid
    return found


def written_minder(folder: Path) -> int:
    """The pid of the running minder that ``pid.json`` in a container's *folder* names; 0 where there is none.

    The file is written before the process has a minder's command line, by which :func:`container_of_minder` knows it.
    """
    try:
        ran = json.loads((folder / "pid.json").read_bytes())
        pid, start, boot = int(ran["minder"]), int(ran["minder_start"]), ran["boot"]
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, KeyError, TypeError):  # the process has ended, or a power failure emptied the file
        return 0
    return pid if boot == boot_id() and fields[0] not in "ZX" and int(fields[19]) == start else 0


def container_of_minder(pid: int, folder: Path) -> str:
    """The id of the container in *folder* whose minder the process *pid* is, by its command line; empty for other processes."""
    try:
        is_mine = os.stat(f"/proc/{pid}").st_uid == os.geteuid()
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return ""
    if not is_mine or not any(_MINDER in word for word in words[:5]):
        return ""
    facts = dict(word.split("=", 1) for word in words[5:] if "=" in word)
    container_id = facts.get("id", "")
    return container_id if facts.get("folder") == str(folder / container_id) else ""


def listed(names: Sequence[str]) -> str:
    """Join *names* for a sentence: the first ten, and the number of the others."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _tagged_links(kernel: Kernel, netns: NetnsRef, tags: Collection[str]) -> int:
    """How many links of *netns* have one of *tags*."""
    return sum(store_of(link.alias) in tags for link in kernel.rtnl(netns).links()) if tags else 0


def _tagged_netns(kernel: Kernel, config: Config, tags: Collection[str]) -> int:
    """How many netns pinned in netlib's folders have a ``lo`` with one of *tags*."""
    count = 0
    for netns in pinned_netns(config.run_dir) if tags else ():
        with suppress(KernelError):  # somebody deleted the netns meanwhile
            count += store_of(kernel.rtnl(netns).get_link("lo").alias) in tags
            kernel.forget(netns)
    return count
