"""The tags by which stores of this state folder have marked objects.

They are in a file beside the store, so that they are known when the store is lost: one line each, ``<six digits> <netns
identity>``. The line of a store that was deleted stays in the file until the next boot.
"""

import os
from contextlib import suppress
from pathlib import Path

from netlib.config import Config
from netlib.kernel.folders import open_private
from netlib.kernel.netns import boot_id

__all__ = ["TAG_DIGITS", "forget_tags", "known_tags", "remember_tag", "store_of", "tag_of", "tags_of"]

TAG_DIGITS = 12  # of a record's id
_NAME = "tags"


def tag_of(text: str) -> tuple[str, str]:
    """The store and (the beginning of) the record in a tag ``netlib:<store>:<record>``; both empty for any other text."""
    parts = text.split(":")
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == "netlib" else ("", "")


def store_of(text: str) -> str:
    """The store in a tag; empty for any other text."""
    return tag_of(text)[0]


def tags_of(config: Config) -> dict[str, str]:
    """Every tag that this state folder has used since the boot, with its netns, from both files."""
    return {**known_tags(config.memory_dir), **known_tags(config.state_dir)}


def known_tags(folder: Path) -> dict[str, str]:
    """The tags since the boot, with their netns, from the file in *folder*."""
    try:
        lines = (folder / _NAME).read_text(errors="replace").splitlines()
    except OSError:  # none, or something else has its name
        return {}
    pairs = [line.split(" ") for line in lines]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[1].startswith(f"{boot_id()}:")}


def remember_tag(folder: Path, tag: str, netns: str) -> None:
    """Add a tag; where the folder takes no writes, the next opening of the store tries again."""
    known = known_tags(folder)
    if known.get(tag) == netns:
        return
    new = folder / f"{_NAME}.{os.getpid()}"
    with suppress(OSError):
        fd = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with open(fd, "w") as file:
                file.writelines(f"{item} {place}\n" for item, place in ({**known, tag: netns}).items())
            new.rename(folder / _NAME)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def forget_tags(folder: Path) -> None:
    """Delete the file: no object has one of these tags any more."""
    (folder / _NAME).unlink(missing_ok=True)
