"""The host of a store: opening the store, and checking that its records are those of what the kernel holds.

One store describes one netns. Opening a store costs a socket and two short reads.
"""

import errno
import os

from netlib.config import Config
from netlib.core import recovery
from netlib.core.traces import traces
from netlib.errors import ConfigError, NetlibError, NotPermitted, StoreLost
from netlib.kernel.folders import PRIVATE, make_folder
from netlib.kernel.netns import boot_id, current_identity
from netlib.names import new_id
from netlib.settings import Settings, SettingsFile
from netlib.store.generation import Generation
from netlib.store.locks import Locks, run_folder_refusal
from netlib.store.sqlite import Store
from netlib.store.tags import remember_tag, tags_of

LOG_OF_STORE = "netlib.db-wal"  # SQLite's write-ahead log


def require_root() -> None:
    """Raise NotPermitted for another user than root, of the machine or of a user namespace."""
    if os.geteuid() != 0:
        raise NotPermitted(
            "netlib changes network namespaces: run it as root (sudo), or inside `unshare --user --map-root-user --net --mount`"
        )


class Host:
    """The store, the locks, the settings and the tag of one host."""

    def __init__(self, config: Config, *, despite_loss: bool = False) -> None:
        """Open the store of *config*, and forget the records of a former boot.

        Raises NotPermitted without root, WrongHost in another netns than the store's, and ConfigError where the state folder
        is no folder; not for faults of ``daemon.json``. Raises StoreLost where the store is new or older than what it made;
        with *despite_loss*, ``lost`` is that error instead, and nothing is forgotten.
        """
        require_root()
        self.config = config
        if config.state_dir.exists() and not config.state_dir.is_dir():
            raise ConfigError(f"state folder {config.state_dir} is no folder; pass --state-dir, or set NETLIB_STATE_DIR")
        self.settings_file = SettingsFile(config)
        self.unfollowed: NetlibError | None = None  # why the predefined networks could not be made as the settings say
        self.locks = Locks(config.lock_dir)  # refuses another user's folder
        self._memory = config.memory_dir
        try:
            make_folder(config.run_dir, PRIVATE)
            make_folder(self._memory, PRIVATE)
        except OSError as error:
            if error.errno != errno.EROFS:  # commands that only read need no run folder
                raise run_folder_refusal(config.run_dir, error) from error
        self.generation = Generation(self._memory, boot_id())
        self.store = Store(config.state_dir, boot=boot_id(), generation=self.generation)
        self.lost = self._find_loss()
        if self.lost is not None and not despite_loss:
            self.store.close()
            raise self.lost
        if self.lost is None and recovery.check_host(self.store):
            with self.locks.hold("boot", "forgetting what the last boot held"):
                if recovery.check_host(self.store):  # otherwise another process has done it
                    recovery.forget_former_boot(self.store, config)
        self.tag = self._tag()
        for folder in (config.state_dir, self._memory):
            remember_tag(folder, self.tag, current_identity())

    @property
    def settings_fault(self) -> NetlibError | None:
        """Why the settings cannot be used now, or None: a fault of the file, or a network that cannot be as the file says."""
        return self.settings_file.fault or self.unfollowed

    @property
    def settings(self) -> Settings:
        """The settings as of the last look at the file, for what is to be made by them; raises :attr:`settings_fault`."""
        self.require_settings()
        return self.settings_file.known

    def require_settings(self) -> None:
        """Raise :attr:`settings_fault` if there is one."""
        if (fault := self.settings_fault) is not None:
            raise fault

    def refuse_loss(self) -> None:
        """Raise StoreLost where somebody has replaced the store by an older copy, or by a new one, since it was opened."""
        if (lost := self._find_loss()) is not None:
            raise lost

    def _find_loss(self) -> StoreLost | None:
        """The error for a store that is new or older than its generation, where traces of what it made exist; None otherwise.

        A new or older store without traces is accepted, since all that it made is gone. A store that is neither costs two
        short reads.
        """
        known = self.generation.known()  # before the store's own number, which then can only be larger
        if (what := self._suspected_loss(known)) is None:
            return None
        tags = set(tags_of(self.config))
        with self.store.read() as tx:
            tags |= {tag} if (tag := tx.meta("tag")) else set()
        found = traces(self.config, tags)
        if (what := self._suspected_loss(self.generation.known())) is None:  # another process was just making it
            return None
        if not found:
            if known:
                with self.store.read() as tx:
                    self.generation.settle(tx.generation())
            return None
        return StoreLost(f"{self.store.path} {what}; found: {', '.join(found)}, which it may not know")

    def _suspected_loss(self, known: int) -> str | None:
        """StoreLost's words for a store that is new, or has fewer operations than *known*, its generation; None otherwise."""
        with self.store.read() as tx:
            reached, place = tx.generation(), tx.meta("netns")
        if place is None:
            return "is new"
        if reached < known:
            return f"ends at operation {reached} of {known}: it is an older copy, or the end of its log {LOG_OF_STORE} was lost"
        return None

    def _tag(self) -> str:
        """The store's tag, which marks its links: six digits, chosen here for a new store."""
        with self.store.read() as tx:
            tag = tx.meta("tag")
        if tag is None:
            with self.store.write() as tx:
                tag = tx.meta("tag") or new_id()[:6]
                tx.set_meta("tag", tag)
        return tag
