"""What a store holds, looked at by tests."""

from collections.abc import Iterator

from netlib.plan import KernelObject
from netlib.store.objects import decode_object
from netlib.store.records import Transaction

__all__ = ["stored_objects"]


def stored_objects(tx: Transaction) -> Iterator[KernelObject]:
    """Every kernel object written down, whichever record holds it."""
    for key, body in tx.db.execute("SELECT key, body FROM object ORDER BY record, seq"):
        yield decode_object(body, key)
