"""The tables of the local store and how an older file becomes a newer one.

``PRAGMA user_version`` counts the migrations (statements, or a function) that a file has had; each runs once, in order, in the
transaction that finds it missing. A landed migration is never edited: the next one is added below it.

* ``record``: one row per network, sandbox, endpoint, container; ``phase`` says how far its objects got.
* ``object``: what was applied for a record, in order; teardown and recovery follow it.
* ``pool``, ``free_range``, ``lease``: the default IPAM. ``free_range`` holds what is *not* leased as intervals, so that
  finding the next free address after any other is one index look-up, for a /30 as for a /64. Pools 4 and 6 belong to no
  network: they are the address spaces themselves, and what is free in them is what no network's subnet covers.
* ``port``: published host ports, so that a clash is found, and its holder named, without reading every endpoint.
* ``journal``: one row per operation, for ``netlib log``; its events are what ``netlib events`` shows.

Addresses are 16 bytes, big-endian, so that they compare as numbers do; an IPv4 address has twelve zero bytes in front.
"""

import json
import sqlite3
from collections.abc import Callable

from netlib.codec import to_builtins
from netlib.ports import parse_publish

__all__ = ["MIGRATIONS"]


def _typed_containers(db: sqlite3.Connection) -> None:
    """Records of containers had their ports as texts, and an empty text for an address that was not asked for."""
    for record, body in db.execute("SELECT id, body FROM record WHERE kind='container'").fetchall():
        container = json.loads(body)
        spec = container["spec"]
        spec["publish"] = to_builtins([port for text in spec["publish"] for port in parse_publish(text)])
        spec["networks"] = [{**item, "ip": item["ip"] or None, "ip6": item["ip6"] or None} for item in spec["networks"]]
        db.execute("UPDATE record SET body=? WHERE id=?", (json.dumps(container).encode(), record))


MIGRATIONS: tuple[str | Callable[[sqlite3.Connection], None], ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    CREATE TABLE record (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        phase TEXT NOT NULL,
        network TEXT,
        sandbox TEXT,
        boot TEXT NOT NULL,
        body BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX record_name ON record (kind, name);
    CREATE INDEX record_network ON record (network) WHERE network IS NOT NULL;
    CREATE INDEX record_sandbox ON record (sandbox) WHERE sandbox IS NOT NULL;
    CREATE INDEX record_in_flight ON record (phase) WHERE phase <> 'ready';
    CREATE INDEX record_boot ON record (boot);

    CREATE TABLE object (
        record TEXT NOT NULL REFERENCES record (id) ON DELETE CASCADE,
        seq INTEGER NOT NULL,
        key TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (record, seq)
    ) WITHOUT ROWID;
    CREATE INDEX object_key ON object (key);

    CREATE TABLE pool (
        id INTEGER PRIMARY KEY,
        network TEXT NOT NULL,
        family INTEGER NOT NULL,
        subnet TEXT NOT NULL,
        first BLOB NOT NULL,
        last BLOB NOT NULL,
        range_first BLOB NOT NULL,
        range_last BLOB NOT NULL,
        cursor BLOB NOT NULL
    );
    CREATE UNIQUE INDEX pool_network ON pool (network, subnet);
    CREATE INDEX pool_span ON pool (family, last);

    CREATE TABLE free_range (
        pool INTEGER NOT NULL REFERENCES pool (id) ON DELETE CASCADE,
        last BLOB NOT NULL,
        first BLOB NOT NULL,
        PRIMARY KEY (pool, last)
    ) WITHOUT ROWID;

    INSERT INTO pool SELECT 4, '', 4, '0.0.0.0/0', low, high, low, high, low
        FROM (SELECT zeroblob(16) AS low, X'000000000000000000000000FFFFFFFF' AS high);
    INSERT INTO pool SELECT 6, '', 6, '::/0', low, high, low, high, low
        FROM (SELECT zeroblob(16) AS low, X'FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF' AS high);
    INSERT INTO free_range (pool, last, first) SELECT id, last, first FROM pool;

    CREATE TABLE lease (
        pool INTEGER NOT NULL REFERENCES pool (id) ON DELETE CASCADE,
        address BLOB NOT NULL,
        owner TEXT NOT NULL,
        PRIMARY KEY (pool, address)
    ) WITHOUT ROWID;
    CREATE INDEX lease_owner ON lease (owner);

    CREATE TABLE port (
        protocol TEXT NOT NULL,
        number INTEGER NOT NULL,
        host_ip TEXT NOT NULL,
        owner TEXT NOT NULL REFERENCES record (id) ON DELETE CASCADE,
        PRIMARY KEY (protocol, number, host_ip)
    ) WITHOUT ROWID;
    CREATE INDEX port_owner ON port (owner);

    CREATE TABLE journal (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        operation TEXT NOT NULL,
        subject TEXT NOT NULL,
        outcome TEXT NOT NULL,
        seconds REAL NOT NULL,
        detail BLOB NOT NULL
    );
    """,
    """
    CREATE INDEX record_netns ON record (json_extract(CAST(body AS TEXT), '$.netns.identity')) WHERE kind = 'sandbox';
    """,
    _typed_containers,
    """
    ALTER TABLE journal ADD COLUMN events BLOB NOT NULL DEFAULT X'5B5D';
    """,
    # No statement uses it: records of other boots are asked for by "<>", for which SQLite reads no index.
    """
    DROP INDEX record_boot;
    """,
)
