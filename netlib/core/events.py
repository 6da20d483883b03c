"""Reading the events in a store's journal: those of the past, and then each new one, whichever process wrote it.

::

    verb ── transaction ── journal line with its events ── number in the run folder is raised
                                                                     │ inotify
                                                                     ▼
                                             a follower reads the lines after the last one it has read

No process serves events: the journal is in the store, and a change of the number's file (:mod:`netlib.store.generation`) says
that the journal has new lines.
"""

import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack

from netlib.core.session import Session
from netlib.errors import StoreError
from netlib.kernel import inotify
from netlib.store.records import Published
from netlib.wire.protocol import store_identity

__all__ = ["published"]

_LOOK_SECONDS = 1.0  # the file does not change where another process has it locked, or the run folder takes no writes
_EVENT_BYTES = 1 << 14  # of inotify, read at once; their content is not looked at


def published(
    session: Session, *, since: float | None = None, until: float | None = None, follow: bool = True
) -> Iterator[Published]:
    """Yield the events from the moment *since* (None: now) up to the moment *until*, in seconds since the epoch, oldest first.

    Without *follow* the newest event is the last; with it, each new event is yielded when it happens. Raises StoreError when
    another store replaces this one meanwhile.
    """
    identity = store_identity(session.config.state_dir)
    with session.store.read() as tx:
        last = 0 if since is not None else tx.generation()
    with ExitStack() as stack:
        poller, watching = select.poll(), -1
        if follow:
            watching = inotify.watch(session.config.memory_dir, inotify.MODIFIED)
            stack.callback(os.close, watching)
            poller.register(watching, select.POLLIN)
        while True:
            with session.store.read() as tx:
                found = tx.events(after=last, since=since or 0.0)
            for item in found:
                if until is not None and item.time > until:
                    return
                yield item
            last = found[-1].number if found else last
            if not follow or (until is not None and time.time() >= until):
                return
            if store_identity(session.config.state_dir) != identity:
                raise StoreError(f"{session.store.path} was exchanged for another one; ask for its events anew")
            left = _LOOK_SECONDS if until is None else max(min(_LOOK_SECONDS, until - time.time()), 0.0)
            if poller.poll(left * 1000):
                os.read(watching, _EVENT_BYTES)
