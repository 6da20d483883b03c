"""The local store: atomic, migrated, readable by root only, and clear about what is wrong with it."""

import os
import resource
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from netlib.codec import decode
from netlib.errors import StoreDamaged, StoreError
from netlib.kernel.owned_netns import OwnedNetns
from netlib.model import AddressPool, Endpoint, NetnsRef, Network, Phase, PortMapping, Protocol, Sandbox
from netlib.ports import parse_publish
from netlib.requests import Join
from netlib.runtime.spec import Container
from netlib.store.records import JOURNAL_ROWS, JournalEntry
from netlib.store.reserve import RESERVE_BYTES
from netlib.store.schema import MIGRATIONS
from netlib.store.sqlite import Store
from tests.stored import stored_objects

NETWORK = Network(
    id="a" * 64,
    name="web",
    driver="bridge",
    created=1.5,
    pools=(
        AddressPool(
            subnet=ip_network("10.1.0.0/24"), gateway=ip_address("10.1.0.1"), auxiliary={"printer": ip_address("10.1.0.9")}
        ),
        AddressPool(subnet=ip_network("fd00::/64"), gateway=ip_address("fd00::1")),
    ),
)
SANDBOX = Sandbox(id="b" * 64, name="box", created=2.0, netns=NetnsRef("/run/netns/box", "x:1"), owned=True)
ENDPOINT = Endpoint(id="c" * 64, network=NETWORK.id, sandbox=SANDBOX.id, created=3.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state", boot="boot1")


def _fill(store: Store) -> None:
    with store.write() as tx:
        tx.insert(NETWORK, name="web", phase=Phase.READY)
        tx.insert(SANDBOX, name="box", phase=Phase.READY)
        tx.insert(ENDPOINT, name=f"{NETWORK.id}/{SANDBOX.id}", network=NETWORK.id, sandbox=SANDBOX.id)


def test_records_read_back_as_written_with_every_address_type(store: Store) -> None:
    _fill(store)
    with store.read() as tx:
        row = tx.find(Network, "web")
        assert row is not None
        assert row.value == NETWORK
        assert (row.phase, row.boot) == (Phase.READY, "boot1")


def test_a_record_is_found_by_name_id_or_unambiguous_beginning(store: Store) -> None:
    _fill(store)
    twin = Network(id="aaab" + "0" * 60, name="other", driver="bridge", created=1.0)
    with store.write() as tx:
        tx.insert(twin, name="other")
    with store.read() as tx:
        assert tx.find(Network, NETWORK.id) is not None
        assert tx.find(Network, "aaab") == tx.find(Network, "other")
        assert tx.find(Network, "aaa") is None
        assert tx.find(Network, "") is None
        assert tx.find(Sandbox, "web") is None


def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    def crash() -> None:
        with store.write() as tx:
            tx.insert(NETWORK, name="web")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    with store.read() as tx:
        assert tx.all(Network) == []


def test_deleting_a_record_takes_its_objects_and_ports_along(store: Store) -> None:
    _fill(store)
    mapping = PortMapping(container_port=80, host_port=8080)
    with store.write() as tx:
        tx.write_objects(ENDPOINT.id, [OwnedNetns(path="/run/netns/x", identity="123456789abc:7")])
        tx.claim_ports([mapping], ENDPOINT.id)
        assert tx.port_holder(mapping) == ENDPOINT.id
        tx.delete(ENDPOINT.id)
        assert tx.port_holder(mapping) is None
        assert list(stored_objects(tx)) == []


@pytest.mark.parametrize(
    ("held", "asked", "clash"),
    [
        (None, None, True),
        (None, "127.0.0.1", True),
        ("127.0.0.1", None, True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("127.0.0.1", "::1", False),
    ],
)
def test_a_port_on_every_address_clashes_with_each(store: Store, held: str | None, asked: str | None, clash: bool) -> None:
    _fill(store)
    with store.write() as tx:
        tx.claim_ports(
            [PortMapping(container_port=80, host_port=8080, host_ip=ip_address(held) if held else None)], ENDPOINT.id
        )
        asked_ip = ip_address(asked) if asked else None
        assert (tx.port_holder(PortMapping(container_port=81, host_port=8080, host_ip=asked_ip)) is not None) is clash
        assert tx.port_holder(PortMapping(container_port=81, host_port=8080, host_ip=asked_ip, protocol=Protocol.UDP)) is None


def test_an_object_held_by_two_records_has_a_holder_besides_each(store: Store) -> None:
    _fill(store)
    item = OwnedNetns(path="/run/netns/x", identity="123456789abc:7")
    with store.write() as tx:
        tx.write_objects(NETWORK.id, [item])
        tx.write_objects(SANDBOX.id, [item])
        assert tx.holders([item.key], besides=[NETWORK.id]) == {str(item.key): SANDBOX.id}
        assert tx.object_of(SANDBOX.id, str(item.key)) == item
        assert tx.holders([item.key], besides=[NETWORK.id, SANDBOX.id]) == {}
        tx.drop_object([SANDBOX.id], item.key)
        assert tx.holders([item.key], besides=[NETWORK.id]) == {}


def test_a_new_name_for_a_kind_is_refused_while_it_is_taken(store: Store) -> None:
    _fill(store)
    with pytest.raises(sqlite3.IntegrityError), store.write() as tx:
        tx.insert(Network(id="d" * 64, name="web", driver="bridge", created=1.0), name="web")


def test_file_and_folder_are_their_owners_only(store: Store) -> None:
    store.path.parent.mkdir(mode=0o755)
    _fill(store)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_threads_and_forked_children_have_connections_of_their_own(store: Store) -> None:
    _fill(store)
    seen: list[int] = []

    def look() -> None:
        with store.read() as tx:
            seen.append(len(tx.all(Network)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        with store.write() as tx:
            tx.set_meta("child", "was here")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with store.read() as tx:
        assert tx.meta("child") == "was here"
    assert seen == [1]


def test_a_file_of_a_newer_netlib_is_refused_with_the_remedy(store: Store) -> None:
    _fill(store)
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreError, match="upgrade netlib"), store.read():
        pass


_OLD_CONTAINER = b"""{"id":"c.container","name":"c","created":0,"hostname":"c","spec":{"command":["true"],
"publish":["8080:80","53/udp"],"networks":[{"network":"web","aliases":["www"],"ip":"10.0.0.9","ip6":"","mac":"","ifname":"","links":[],"gw_priority":0,"options":{}}]}}"""


def test_an_older_file_is_brought_forward(store: Store) -> None:
    _fill(store)
    box = Sandbox(id="d" * 64, name="guest", created=0, netns=NetnsRef("/run/netns/guest", "boot:7"), owned=False)
    with store.write() as tx:
        tx.insert(box, name=box.name)
        tx.db.execute("DROP INDEX record_netns")
        tx.db.execute("CREATE INDEX record_boot ON record (boot)")
        tx.db.execute("ALTER TABLE journal DROP COLUMN events")
        tx.db.execute("INSERT INTO record VALUES ('c.container','container','c','ready',NULL,NULL,'',?)", (_OLD_CONTAINER,))
        tx.db.execute("PRAGMA user_version=1")
    store.close()
    with store.read() as tx:
        assert tx.db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        found = tx.sandbox_in("boot:7")
        assert found is not None
        assert found.value == box
        (body,) = tx.db.execute("SELECT body FROM record WHERE kind='container'").fetchone()
        spec = decode(body, Container).spec
        assert spec.publish == (*parse_publish("8080:80"), *parse_publish("53/udp"))
        assert spec.networks == (Join(network="web", aliases=("www",), ip=ip_address("10.0.0.9")),)
        assert [entry.events for entry in tx.journal(1)] in ([], [()])


def test_a_sandbox_is_found_by_its_netns_without_reading_the_others(store: Store) -> None:
    asked: list[str] = []
    with store.read() as tx:
        tx.db.set_trace_callback(asked.append)
        tx.sandbox_in("boot:7")
        tx.db.set_trace_callback(None)
        plan = " ".join(row[3] for row in tx.db.execute(f"EXPLAIN QUERY PLAN {asked[0]}"))
    assert "USING INDEX record_netns" in plan


def test_a_damaged_row_is_named(store: Store) -> None:
    _fill(store)
    with store.write() as tx:
        tx.db.execute("UPDATE record SET body=? WHERE name='web'", (b'{"id": 5}',))
    with pytest.raises(StoreDamaged, match="damaged record"), store.read() as tx:
        tx.find(Network, "web")


def _scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 16384)


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no database at all, but long enough to look like a header" * 20),
        lambda path: os.truncate(path, 5000),
        _scribble,
        _foreign,
        _folder,
    ],
)
def test_a_damaged_file_is_named_with_the_way_back(store: Store, spoil: Callable[[Path], object]) -> None:
    _fill(store)
    store.close()
    spoil(store.path)
    with pytest.raises(StoreDamaged, match="netlib.db: .*`netlib system reset --lost`"), store.read() as tx:
        tx.all(Network)


@pytest.mark.parametrize("more", range(4))
def test_too_many_open_files_are_no_damage(store: Store, more: int) -> None:
    """The store takes four: its folder for a moment, the file, the log, and what is shared."""
    _fill(store)
    store.close()
    lowest = os.dup(0)
    os.close(lowest)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, limits[1]))
    try:
        with pytest.raises(StoreError) as caught, store.read() as tx:
            tx.all(Network)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert type(caught.value) is StoreError


def test_a_reserve_is_kept_once(store: Store) -> None:
    _fill(store)
    reserve = store.path.with_name("reserve")
    assert (reserve.stat().st_size, reserve.stat().st_blocks * 512) == (RESERVE_BYTES, RESERVE_BYTES)
    before = reserve.stat().st_ino
    with store.write(clearing=True) as tx:
        tx.delete(ENDPOINT.id)
    assert reserve.stat().st_ino == before


def test_the_journal_keeps_its_newest_rows(store: Store) -> None:
    with store.write() as tx:
        for number in range(JOURNAL_ROWS + 5):
            tx.log(JournalEntry(float(number), "network create", "web", "ok", 0.001, ["+ link/host/br0"]))
        assert len(tx.journal(JOURNAL_ROWS * 2)) == JOURNAL_ROWS
        assert [entry.time for entry in tx.journal(2)] == [JOURNAL_ROWS + 3.0, JOURNAL_ROWS + 4.0]
