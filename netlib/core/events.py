"""Events of one store, as the journal publishes them: those that are there, then each as it happens, by whichever process.

::

    verb ── transaction ── journal line with its events ── number in the run folder moves on
                                                                     │ inotify
                                                                     ▼
                                                   who follows reads the lines behind the last one

Nobody has to serve this: the journal is in the store, and the number (:mod:`netlib.store.generation`) tells that there is more.
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

_LOOK_SECONDS = 1.0  # where a line was written and its number was not: another process had the file just then
_EVENT_BYTES = 1 << 14


def published(
    session: Session, *, since: float | None = None, until: float | None = None, follow: bool = True
) -> Iterator[Published]:
    """Events from the moment *since* (None: from now) up to the moment *until*, in seconds since the epoch, oldest first.

    Without *follow*, those that are there. Raises StoreError when the store is exchanged for another meanwhile.
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
