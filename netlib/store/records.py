"""Typed rows inside one transaction: records, their objects, published ports, the journal.

The tables of addresses are reached by :attr:`Transaction.leases`.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec import Struct

from netlib.codec import decode, encode
from netlib.model import CniAttachment, Endpoint, Event, IPAddress, Network, Phase, PortMapping, Protocol, Sandbox
from netlib.names import ID_DIGITS, new_id
from netlib.plan import KernelObject, Key, Plan
from netlib.store.kinds import kind_called, kind_of, recovered_names
from netlib.store.leases import StoredLeases
from netlib.store.objects import decode_object, encode_object

_R = TypeVar("_R", bound=Struct)

JOURNAL_ROWS = 10_000


class Row(NamedTuple, Generic[_R]):
    """One record with what the store knows about it."""

    id: str
    kind: str
    name: str
    phase: Phase
    boot: str
    value: _R


class JournalEntry(NamedTuple):
    """One operation as ``netlib log`` shows it."""

    time: float  # seconds since the epoch
    operation: str
    subject: str
    outcome: str
    seconds: float
    detail: list[str]
    events: tuple[Event, ...] = ()  # what has happened by it; none where it failed


class Published(NamedTuple):
    """One event with its place in the journal: *number* is its line's.

    *time* (seconds since the epoch) is when the operation ended.
    """

    number: int
    time: float
    event: Event


_PHASES = {phase.value: phase for phase in Phase}
_COLUMNS = "id, kind, name, phase, boot, body"
# "+kind" below keeps SQLite from reading every record of a kind by the index of names, which it prefers to better ones.


class Transaction:
    """Every question and every change that the core has for the store."""

    def __init__(self, db: sqlite3.Connection, boot: str) -> None:
        self.db = db
        self.boot = boot
        self.leases = StoredLeases(db)
        self.counted = 0  # where the journal ends after this transaction, if it moved on

    # --- records ---------------------------------------------------------------------------------------------------

    def insert(
        self, value: Any, *, name: str, phase: Phase = Phase.CREATING, network: str | None = None, sandbox: str | None = None
    ) -> None:
        """Write a new record. ``sqlite3.IntegrityError`` when its kind has that name; callers look first."""
        self.db.execute(
            "INSERT INTO record (id, kind, name, phase, network, sandbox, boot, body) VALUES (?,?,?,?,?,?,?,?)",
            (value.id, kind_of(type(value)).name, name, phase, network, sandbox, self.boot, encode(value)),
        )

    def replace(self, value: Any, *, name: str | None = None) -> None:
        """Write a record's new body, and its new name where one is given."""
        self.db.execute("UPDATE record SET body=?, name=coalesce(?, name) WHERE id=?", (encode(value), name, value.id))

    def set_phase(self, record: str, phase: Phase) -> None:
        """Set a record's phase and stamp the record with this boot."""
        self.db.execute("UPDATE record SET phase=?, boot=? WHERE id=?", (phase, self.boot, record))

    def give_up_joining(self, sandbox: str, *, besides: str = "") -> None:
        """Call ``removing`` the endpoints of a sandbox that are in creation, *besides* one (ids); the caller holds its lock.

        So their workers are dead, and the next recovery takes them down.
        """
        self.db.execute(
            "UPDATE record SET phase='removing' WHERE sandbox=? AND +kind='endpoint' AND phase='creating' AND id<>?",
            (sandbox, besides),
        )

    def stamp(self, record: str, boot: str) -> None:
        """Say in which boot a record's objects were applied; empty for not yet."""
        self.db.execute("UPDATE record SET boot=? WHERE id=?", (boot, record))

    def delete(self, record: str) -> None:
        """Delete a record with its objects and ports."""
        self.db.execute("DELETE FROM record WHERE id=?", (record,))

    def find(self, cls: type[_R], reference: str) -> Row[_R] | None:
        """The record of that name or id; an id may be shortened as long as one record alone has it."""
        if not isinstance(reference, str):  # None, or the record itself, of a Python caller
            return None
        if len(reference) == ID_DIGITS and (whole := self.by_id(reference)) is not None and isinstance(whole.value, cls):
            return whole
        if (row := self.find_named(cls, reference)) is not None or not reference:
            return row
        rows = self.db.execute(
            f"SELECT {_COLUMNS} FROM record WHERE id>=? AND id<? AND +kind=? LIMIT 2",
            (reference, reference + "g", kind_of(cls).name),
        ).fetchall()
        return self._row(rows[0]) if len(rows) == 1 else None

    def sandbox_in(self, netns: str) -> Row[Sandbox] | None:
        """The sandbox whose netns has that identity, in whatever phase."""
        row = self.db.execute(
            f"SELECT {_COLUMNS} FROM record WHERE kind='sandbox' AND json_extract(CAST(body AS TEXT), '$.netns.identity')=?",
            (netns,),
        ).fetchone()
        return self._row(row) if row else None

    def find_named(self, cls: type[_R], name: str) -> Row[_R] | None:
        """The record of exactly that name, in whatever phase."""
        row = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE kind=? AND name=?", (kind_of(cls).name, name)).fetchone()
        return self._row(row) if row else None

    def new_link_id(self) -> str:
        """An id whose first seven digits, which name a veth, no other record has: among 1,000 two meet once in 500 hosts."""
        while True:
            record = new_id()
            if not self.is_known(record[:7]):
                return record

    def by_id(self, record: str) -> Row[Any] | None:
        """The record with that full id, of whatever kind."""
        row = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE id=?", (record,)).fetchone()
        return self._row(row) if row else None

    def is_known(self, beginning: str) -> bool:
        """Whether a record's id begins like that, as a tag names it."""
        span = (beginning, beginning + "g")
        return self.db.execute("SELECT 1 FROM record WHERE id>=? AND id<? LIMIT 1", span).fetchone() is not None

    def all(self, cls: type[_R]) -> list[Row[_R]]:
        """Every record of a kind, by name."""
        rows = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE kind=? ORDER BY name", (kind_of(cls).name,))
        return [self._row(row) for row in rows]

    def endpoints_of_network(self, network: str) -> list[Row[Endpoint]]:
        """The endpoints in a network (by id), in whatever phase."""
        rows = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE network=? AND +kind='endpoint' ORDER BY name", (network,))
        return [self._row(row) for row in rows]

    def endpoints_of_sandbox(self, sandbox: str) -> list[Row[Endpoint]]:
        """The endpoints of a sandbox (by id), in whatever phase."""
        rows = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE sandbox=? AND +kind='endpoint' ORDER BY name", (sandbox,))
        return [self._row(row) for row in rows]

    def memberships(self, sandbox: str) -> list[tuple[Network, Endpoint]]:
        """The networks that a sandbox (by id) is in with its endpoints there, but for those that it is leaving; by ifname."""
        rows = self.db.execute(
            "SELECT home.body, member.body FROM record AS member JOIN record AS home ON home.id=member.network "
            "WHERE member.sandbox=? AND +member.kind='endpoint' AND member.phase<>'removing'",
            (sandbox,),
        )
        found = [(decode(network, Network), decode(endpoint, Endpoint)) for network, endpoint in rows]
        return sorted(found, key=lambda pair: pair[1].ifname)

    def users_of(self, record: str) -> list[Row[Any]]:
        """The endpoints and attachments in a network or sandbox (by id), in whatever phase."""
        rows = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE network=? OR sandbox=? ORDER BY name", (record, record))
        return [self._row(row) for row in rows]

    def attachments_of(self, network: str) -> list[Row[CniAttachment]]:
        """The attachments in a CNI network (by id), in whatever phase."""
        rows = self.db.execute(
            f"SELECT {_COLUMNS} FROM record WHERE network=? AND +kind='cni_attachment' ORDER BY name", (network,)
        )
        return [self._row(row) for row in rows]

    def attachments_in(self, netns: str) -> list[Row[CniAttachment]]:
        """The attachments whose netns is, or was, at that path, in whatever phase."""
        rows = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE sandbox=? AND +kind='cni_attachment'", (netns,))
        return [self._row(row) for row in rows]

    def in_flight(self) -> list[tuple[str, str, str]]:
        """(id, kind, sandbox's id or "") of records that are not ready: being worked on, or left by a crash."""
        rows = self.db.execute(
            f"SELECT id, kind, coalesce(sandbox, '') FROM record WHERE phase<>'ready' AND +kind IN {recovered_names()}"
        )
        return rows.fetchall()

    def change_count(self) -> int:
        """Return a number that changes when another connection has changed the file."""
        (count,) = self.db.execute("PRAGMA data_version").fetchone()
        return int(count)

    def ready_ids(self) -> list[tuple[str, str, str]]:
        """(id, kind, sandbox's id or "") of every sandbox and endpoint that is ready: what a server compares itself with."""
        rows = self.db.execute(
            "SELECT id, kind, coalesce(sandbox, '') FROM record WHERE phase='ready' AND kind IN ('sandbox', 'endpoint')"
        )
        return rows.fetchall()

    def of_other_boots(self) -> list[Row[Any]]:
        """Return the records without this boot's stamp: kernel objects of an earlier boot no longer exist."""
        rows = self.db.execute(f"SELECT {_COLUMNS} FROM record WHERE boot<>? AND kind IN {recovered_names()}", (self.boot,))
        return [self._row(row) for row in rows]

    def _row(self, row: tuple[Any, ...]) -> Row[Any]:
        record, kind, name, phase, boot, body = row
        return Row(record, kind, name, _PHASES[phase], boot, decode(body, kind_called(kind).record))

    # --- objects ---------------------------------------------------------------------------------------------------

    def insert_objects(self, record: str, objects: Iterable[KernelObject], first: int = 0) -> None:
        """Write down what is about to be applied for *record*, which has nothing written down from number *first* on."""
        self.db.executemany(
            "INSERT INTO object (record, seq, key, body) VALUES (?,?,?,?)",
            [(record, seq, str(item.key), encode_object(item)) for seq, item in enumerate(objects, first)],
        )

    def write_objects(self, record: str, objects: Iterable[KernelObject], old: Sequence[KernelObject] = ()) -> None:
        """Write down what is about to be applied for *record*, replacing the objects recorded before.

        *old* are the objects recorded before, where the caller knows them: what both begin with stays as it is.
        """
        objects = tuple(objects)
        pairs = enumerate(zip(old, objects, strict=False))
        same = next((number for number, pair in pairs if pair[0] != pair[1]), min(len(old), len(objects)))
        last = -1  # the number of the last object that stays: there are gaps where shared ones were crossed off
        if same:
            (last,) = self.db.execute(
                "SELECT seq FROM object WHERE record=? ORDER BY seq LIMIT 1 OFFSET ?", (record, same - 1)
            ).fetchone()
        self.db.execute("DELETE FROM object WHERE record=? AND seq>?", (record, last))
        self.insert_objects(record, objects[same:], last + 1)

    def objects(self, record: str) -> Plan:
        """What was written down for *record*, in order."""
        rows = self.db.execute("SELECT key, body FROM object WHERE record=? ORDER BY seq", (record,))
        return Plan(*(decode_object(body, key) for key, body in rows))

    def ready_objects(self, kind: str, netns: str) -> Iterator[tuple[str, KernelObject]]:
        """Every object of one kind in one netns (spelled as in keys: "host", a path) that a ready record holds, with its id."""
        prefix = f"{kind}/{netns}/"
        rows = self.db.execute(
            "SELECT record, key, object.body FROM object JOIN record ON record.id=object.record "
            "WHERE key>=? AND key<? AND phase='ready' ORDER BY record, seq",
            (prefix, prefix[:-1] + chr(ord("/") + 1)),
        )
        for record, key, body in rows:
            yield record, decode_object(body, key)

    def holders(self, keys: Iterable[Key], *, besides: Collection[str]) -> dict[str, str]:
        """Of each key (spelled out) that others than *besides* hold: the id of such a record. One query for all keys."""
        rows = self.db.execute(
            "SELECT value, (SELECT record FROM object WHERE key=value AND record NOT IN (SELECT value FROM json_each(?)) "
            "LIMIT 1) FROM json_each(?)",
            (encode(list(besides)).decode(), encode([str(key) for key in keys]).decode()),
        )
        return {key: record for key, record in rows if record is not None}

    def object_of(self, record: str, key: str) -> KernelObject:
        """One object (its key spelled out) as *record*, which holds it, wrote it down."""
        (body,) = self.db.execute("SELECT body FROM object WHERE record=? AND key=?", (record, key)).fetchone()
        return decode_object(body, key)

    def drop_object(self, records: Iterable[str], key: Key) -> None:
        """Cross one object off *records*; the rest of what is written down for them stays."""
        self.db.executemany("DELETE FROM object WHERE key=? AND record=?", [(str(key), record) for record in records])

    # --- published ports -------------------------------------------------------------------------------------------

    def claim_ports(self, mappings: Iterable[PortMapping], owner: str) -> None:
        """Write down that *owner* (an endpoint's id) publishes these host ports; :meth:`port_holder` first."""
        places: dict[tuple[Protocol, IPAddress | None], list[int]] = {}
        for mapping in mappings:
            places.setdefault((mapping.protocol, mapping.host_ip), []).append(mapping.host_port)
        for (protocol, host_ip), numbers in places.items():  # one statement each: a thousand take 2.7 ms instead of 4.3
            self.db.execute(
                "INSERT INTO port (protocol, number, host_ip, owner) SELECT ?, value, ?, ? FROM json_each(?)",
                (protocol, str(host_ip or ""), owner, encode(numbers).decode()),
            )

    def pass_ports(self, owner: str, receiver: str) -> None:
        """Write down that *receiver* publishes the host ports that *owner* did (ids)."""
        self.db.execute("UPDATE port SET owner=? WHERE owner=?", (receiver, owner))

    def free_ports(self, mappings: Iterable[PortMapping], owner: str) -> None:
        """Write down that *owner* publishes these no more."""
        places = [(mapping.protocol, mapping.host_port, str(mapping.host_ip or ""), owner) for mapping in mappings]
        self.db.executemany("DELETE FROM port WHERE protocol=? AND number=? AND host_ip=? AND owner=?", places)

    def published(self, protocol: Protocol, numbers: Iterable[int]) -> set[int]:
        """Which of these host ports somebody publishes, on whatever address."""
        rows = self.db.execute(
            "SELECT number FROM port WHERE protocol=? AND number IN (SELECT value FROM json_each(?))",
            (protocol, encode(list(numbers)).decode()),
        )
        return {number for (number,) in rows}

    def port_holder(self, mapping: PortMapping) -> str | None:
        """The id of the endpoint whose published port *mapping* would clash with (see :meth:`PortMapping.meets`)."""
        rows = self.db.execute(
            "SELECT host_ip, owner FROM port WHERE protocol=? AND number=?", (mapping.protocol, mapping.host_port)
        )
        return next((owner for host_ip, owner in rows if mapping.meets(ip_address(host_ip) if host_ip else None)), None)

    def ports(self) -> list[PortMapping]:
        """Every host port that is published, as (protocol, number, address); the container's side is left 0."""
        rows = self.db.execute("SELECT protocol, number, host_ip FROM port ORDER BY protocol, number")
        return [
            PortMapping(container_port=0, host_port=number, protocol=protocol, host_ip=ip_address(host_ip) if host_ip else None)
            for protocol, number, host_ip in rows
        ]

    # --- meta and journal ------------------------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        """A fact about the store itself."""
        row = self.db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        """Write a fact about the store itself."""
        self.db.execute("INSERT INTO meta VALUES (?,?) ON CONFLICT (key) DO UPDATE SET value=excluded.value", (key, value))

    def log(self, entry: JournalEntry) -> None:
        """Add an operation to the journal and delete those beyond the limit."""
        cursor = self.db.execute(
            "INSERT INTO journal (time, operation, subject, outcome, seconds, detail, events) VALUES (?,?,?,?,?,?,?)",
            (*entry[:5], encode(entry.detail), encode(entry.events)),
        )
        self.counted = cursor.lastrowid or 0
        self.db.execute("DELETE FROM journal WHERE id<=?", (self.counted - JOURNAL_ROWS,))

    def generation(self) -> int:
        """The number of the newest operation in the journal; it never goes back, also when lines are deleted."""
        row = self.db.execute("SELECT seq FROM sqlite_sequence WHERE name='journal'").fetchone()
        return int(row[0]) if row else 0

    def count_operation(self, number: int = 0) -> None:
        """Continue the journal's numbers after at least *number* and count one operation.

        So a change without a journal line is counted too.
        """
        self.counted = max(self.generation(), number) + 1
        done = self.db.execute("UPDATE sqlite_sequence SET seq=? WHERE name='journal'", (self.counted,))
        if not done.rowcount:
            self.db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('journal', ?)", (self.counted,))

    def journal(self, limit: int) -> list[JournalEntry]:
        """The last *limit* operations, oldest first."""
        rows = self.db.execute(
            "SELECT time, operation, subject, outcome, seconds, detail, events FROM journal ORDER BY id DESC LIMIT ?", (limit,)
        ).fetchall()
        return [
            JournalEntry._make((*row[:5], decode(row[5], list[str]), decode(row[6], tuple[Event, ...])))
            for row in reversed(rows)
        ]

    def events(self, *, after: int = 0, since: float = 0.0) -> list[Published]:
        """The events of journal lines behind the line *after* and not before the moment *since*, oldest first.

        An operation's events happen when it ends: a long one's come after those of a short one that began later.
        """
        rows = self.db.execute(
            "SELECT id, time+seconds, events FROM journal WHERE id>? AND time+seconds>=? ORDER BY id", (after, since)
        )
        return [Published(number, time, event) for number, time, body in rows for event in decode(body, tuple[Event, ...])]
