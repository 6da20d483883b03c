"""The host that a store describes: opened and recognised.

One store describes one netns. Opening it costs a socket and two short reads.
"""

import errno
import os

from netlib.config import Config
from netlib.core import recovery
from netlib.core.traces import traces
from netlib.errors import NotPermitted, StoreLost
from netlib.kernel.folders import PRIVATE, make_folder
from netlib.kernel.netns import boot_id, current_identity
from netlib.names import new_id
from netlib.settings import read_settings
from netlib.store.generation import Generation
from netlib.store.locks import Locks, run_folder_refusal
from netlib.store.sqlite import Store
from netlib.store.tags import remember_tag, tags_of

LOG_OF_STORE = "netlib.db-wal"


class Host:
    """Store, locks and tag of one host."""

    def __init__(self, config: Config, *, despite_loss: bool = False) -> None:
        """Open the store; raises NotPermitted without root, WrongHost from another netns than the store's.

        Raises StoreLost, unless *despite_loss*, where the records are not those of what is there: then ``lost`` is that error.
        """
        if os.geteuid() != 0:
            raise NotPermitted(
                "netlib changes network namespaces: run it as root (sudo), "
                "or inside `unshare --user --map-root-user --net --mount`"
            )
        self.config = config
        self.settings = read_settings(config)
        self.locks = Locks(config.lock_dir)  # refuses another user's folder
        self._memory = config.memory_dir
        try:
            make_folder(config.run_dir, PRIVATE)
            make_folder(self._memory, PRIVATE)
        except OSError as error:
            if error.errno != errno.EROFS:  # where nothing can be written, who only looks needs nothing there
                raise run_folder_refusal(config.run_dir, error) from error
        self.generation = Generation(self._memory, boot_id())
        self.store = Store(config.state_dir, boot=boot_id(), generation=self.generation)
        self.lost = self._find_loss()
        if self.lost is not None and not despite_loss:
            self.store.close()
            raise self.lost
        if self.lost is None and recovery.check_host(self.store):
            with self.locks.hold("boot", "forgetting what the last boot held"):
                if recovery.check_host(self.store):  # else another process was first
                    recovery.forget_former_boot(self.store, config)
        self.tag = self._tag()
        for folder in (config.state_dir, self._memory):
            remember_tag(folder, self.tag, current_identity())

    def refuse_loss(self) -> None:
        """Raise StoreLost where the store has become an older one since it was opened: it was replaced under our feet."""
        if (lost := self._find_loss()) is not None:
            raise lost

    def _find_loss(self) -> StoreLost | None:
        """The error for a store that is new, or behind its generation, while there are traces of more than it knows.

        Without traces it is accepted: all that it made has gone. Two short reads where all is well.
        """
        known = self.generation.known()  # read first: by the time the store is read, it can only be further
        if (what := self._doubt(known)) is None:
            return None
        tags = set(tags_of(self.config))
        with self.store.read() as tx:
            tags |= {tag} if (tag := tx.meta("tag")) else set()
        found = traces(self.config, tags)
        if (what := self._doubt(self.generation.known())) is None:  # another process was just making its first use of it
            return None
        if not found:
            if known:
                with self.store.read() as tx:
                    self.generation.settle(tx.generation())
            return None
        return StoreLost(f"{self.store.path} {what}, and there are {', '.join(found)} that it may not know")

    def _doubt(self, known: int) -> str | None:
        """Why the store may not be the one that made what is there; None where it surely is."""
        with self.store.read() as tx:
            reached, place = tx.generation(), tx.meta("netns")
        if place is None:
            return "is new"
        if reached < known:
            return f"ends at operation {reached} of {known}: it is an older copy, or the end of its log {LOG_OF_STORE} was lost"
        return None

    def _tag(self) -> str:
        """Six digits that tell this store's links from another's."""
        with self.store.read() as tx:
            tag = tx.meta("tag")
        if tag is None:
            with self.store.write() as tx:
                tag = tx.meta("tag") or new_id()[:6]
                tx.set_meta("tag", tag)
        return tag
