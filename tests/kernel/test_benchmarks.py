"""Every benchmark runs to its end, with tiny counts and without peers; how long anything takes is not looked at."""

import itertools
import json
import math
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import fresh_sockets
from benchmarks.__main__ import SUBJECTS, main, measure
from benchmarks.measure import Row, Series, Target, table
from benchmarks.record import read, short
from benchmarks.world import World

PART = 0.02
WITHOUT = "no peer in the tests"
LISTING = Target(150, "ms")  # absolute: its peer is there for comparison only
# The rows with a figure of ours; the one-socket load is dnsperf's, which need not be installed.
ROWS = {
    "connect": {
        "connect, in-process",
        "disconnect, in-process",
        "connect, through netlibd",
        "disconnect, through netlibd",
    },
    "ports": {
        "connect with the 4,000th published port",
        "the 4,000th published port's firewall entry",
        "TCP connect through the 4,000th published port",
        "connect with a range of 20 ports",
        "the same, and netlibd holds the 20 ports",
    },
    "names": {"DNS, a fresh socket per query"},
    "start": {"netlib run -d"},
    "teardown": {"2 sandboxes with their endpoints removed at once"},
    "listing": {"netlib network ls, without netlibd", "netlib network ls, with netlibd"},
    "cni": {
        *(
            f"{verb}, {what}"
            for verb in ("ADD", "DEL")
            for what in ("bridge", "bridge, masquerade and a port", "bridge with masquerade, Python launcher")
        ),
        "2 ADDs at once, then 2 DELs, with masquerade",
        "ADD beside 20 attachments",
    },
    "memory": {
        "shim, PSS with 1 containers",
        "netlibd, RSS with 1 containers",
        "netlibd, RSS with 1 containers and 2 sandboxes",
    },
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, part=PART, without=WITHOUT)


def test_rows_are_expected_of_every_subject() -> None:
    assert set(ROWS) == {*SUBJECTS, "cni"}


@pytest.mark.parametrize("subject", [subject for subject in ROWS if subject not in ("start", "memory")])
def test_a_subject_has_figures_of_ours(world: World, subject: str) -> None:
    check(world, subject)


@pytest.mark.needs_cgroups
@pytest.mark.parametrize("subject", ["start", "memory"])
def test_a_subject_with_containers_has_figures_of_ours(world: World, subject: str) -> None:
    check(world, subject)


def check(world: World, subject: str) -> None:
    rows = {row.subject: row for row in measure(world, [subject], print)}
    assert rows.keys() - {"DNS, one socket"} == ROWS[subject], [row.note for row in rows.values()]
    for row in (rows[name] for name in ROWS[subject]):
        assert row.ours is not None
        assert all(math.isfinite(value) and value > 0 for value in row.ours.values)
        if row.peer_name.startswith(("docker", "Docker", "containerd")):
            assert row.peer is None
            assert row.verdict == "not compared" or row.target == LISTING


def test_what_fails_is_a_row_that_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: World) -> Iterator[Row]:
        yield Row("before", Series((1.0,), "ms"))
        raise OSError("the line is cut")

    monkeypatch.setattr("benchmarks.teardown.measure", broken)
    rows = list(measure(world, ["teardown"], print))
    assert [row.subject for row in rows] == ["before", "teardown"]
    assert (rows[1].verdict, rows[1].note) == ("not compared", "failed: OSError: the line is cut")


def test_results_are_printed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.__main__.start_docker", lambda stack, folder: (None, WITHOUT))
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path / "results")
    status = main(["listing", "--part", str(PART), "--format", "json"])
    (kept,) = (tmp_path / "results").glob("[0-9]*[0-9].json")
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(kept.read_text())
    assert {row["subject"] for row in printed["rows"]} == ROWS["listing"]
    (record,) = (tmp_path / "results").glob("*-bench.json")
    assert {row.name: row.median for row in read(record).rows} == {
        row["subject"]: short(row["ours"]["median"]) for row in printed["rows"]
    }
    assert printed["docker"] == WITHOUT
    assert status == int(not all(row["met"] for row in printed["rows"]))


# --- verdicts ----------------------------------------------------------------------------------------------------------


def figures(*values: float) -> Series:
    return Series(values, "ms")


@pytest.mark.parametrize(
    ("row", "met", "verdict", "is_short"),
    [
        (Row("s", figures(3, 9, 4), target=Target(5, "ms")), True, "yes", False),
        (Row("s", figures(3, 9, 6), target=Target(5, "ms")), False, "NO", True),
        (Row("s", figures(3), "p", figures(10), Target(0.7, "x")), True, "yes", False),
        (Row("s", figures(8), "p", figures(10), Target(0.7, "x")), False, "NO", True),
        (Row("s", figures(12), "p", figures(10), Target(1, "x", at_least=True)), True, "yes", False),
        (Row("s", figures(9), "p", figures(10), Target(1, "x", at_least=True)), False, "NO", True),
        (Row("s", figures(1), "p", None, Target(0.7, "x")), None, "not compared", True),
        (Row("s", None, "p", figures(1), Target(0.7, "x")), None, "not compared", True),
        (Row("s", figures(1), "p", None, Target(5, "ms")), True, "yes", False),  # a target of its own needs no peer
        (Row("s", figures(1), "p", figures(1)), None, "", False),
        (Row("s", None, target=Target(5, "ms")), None, "not compared", True),
    ],
)
def test_a_target_is_met_only_by_figures(row: Row, met: bool | None, verdict: str, is_short: bool) -> None:
    assert (row.met, row.verdict, row.is_short) == (met, verdict, is_short)


def test_the_table_shows_medians_ratios_and_notes() -> None:
    text = table([Row("run", figures(100, 300, 200), "theirs", figures(400), Target(0.7, "x"), "a note"), Row("rest", None)])
    assert [line.split("  ")[0] for line in text.splitlines()] == ["subject", "-------", "run", "", "rest"]
    assert " ".join(text.splitlines()[2].split()) == "run 200 ms (100-300) theirs: 400 ms 0.50 <= 0.7 x yes"
    assert text.splitlines()[3] == "    a note"


# --- the asker from fresh sockets --------------------------------------------------------------------------------------


SERVER = "127.0.0.53"


@contextmanager
def server(flags: int) -> Iterator[Counter[int]]:
    """Answers every question with *flags* and one (empty) record; counts questions by the port they came from."""
    sources: Counter[int] = Counter()

    def serve() -> None:
        while True:
            question, client = sock.recvfrom(512)
            if not question:
                return
            sources[client[1]] += 1
            sock.sendto(question[:2] + struct.pack("!HHHHH", flags, 1, 1, 0, 0) + question[12:], client)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((SERVER, 53))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sources
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", (SERVER, 53))
            thread.join()


def test_every_query_comes_from_a_socket_of_its_own() -> None:
    with server(0x8180) as sources:
        assert fresh_sockets.ask(SERVER, 64, ["alpha", "beta.net"]) > 0
    assert sum(sources.values()) == 64
    assert len(sources) >= 32  # as many as are open at once; a port may come again later


def test_an_answer_that_is_none_ends_the_load() -> None:
    with server(0x8183) as sources, pytest.raises(OSError, match="no answer"):
        fresh_sockets.ask(SERVER, 32, ["alpha"])
    assert len(sources) == 32


def test_queries_have_ids_and_names_in_turn() -> None:
    first, second, third = itertools.islice(fresh_sockets.queries(["a", "b.net"]), 3)
    assert [query[:2] for query in (first, second, third)] == [b"\0\0", b"\0\1", b"\0\2"]
    assert (first[12:], second[12:], third[12:]) == (b"\1a\0\0\1\0\1", b"\1b\3net\0\0\1\0\1", first[12:])
