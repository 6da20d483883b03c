"""Foreign plugins run for one of ours: real small processes, and what is made of each way to answer or not to."""

import os
import time
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_plugins.delegate import delegate, delegate_add, find_executable
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code, Command, as_cni_error
from cni_plugins.result import IP, Result
from cni_plugins.skel import Call
from netlib.errors import DeadlineExceeded
from tests.processes import ended

STDIN = b'{"cniVersion":"1.0.0","name":"pods","type":"bridge","ipam":{"type":"other"},"more":[1]}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def script(folder: Path, body: str, name: str = "other") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def call(folder: Path, command: Command = Command.ADD, environ: Mapping[str, str] | None = None, version: str = "1.0.0") -> Any:
    return Call[NetConf](
        command=command,
        container_id="c1",
        netns="/run/netns/blue",
        ifname="eth0",
        args="",
        path=("/nonexistent", str(folder)),
        config=NetConf(name="pods"),
        version=version,
        prev_result=None,
        valid_attachments=frozenset(),
        raw={},
        stdin=STDIN,
        environ={
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "OUT": str(folder),
            **(environ or {}),
        },
        stderr=[],
    )


def test_it_gets_configuration_and_environment_and_answers_a_result(folder: Path) -> None:
    script(folder, """cat >"$OUT/stdin"; env >"$OUT/env"; echo '{"ips": [{"address": "10.1.0.5/16"}]}'; echo a word >&2""")
    request = call(folder)
    assert delegate_add(request, "other") == Result(ips=(IP(ip_interface("10.1.0.5/16")),))
    assert (folder / "stdin").read_bytes() == STDIN
    assert {"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1"} <= set((folder / "env").read_text().splitlines())
    assert request.stderr == ["a word"]


def test_a_result_without_version_has_that_of_the_configuration(folder: Path) -> None:
    script(folder, """echo '{"ip4": {"ip": "10.1.0.5/16"}}'""")
    assert delegate_add(call(folder, version="0.2.0"), "other").ips == (IP(ip_interface("10.1.0.5/16")),)


@pytest.mark.parametrize("command", [Command.DEL, Command.CHECK, Command.GC, Command.STATUS])
def test_the_other_verbs_are_passed_on(folder: Path, command: Command) -> None:
    script(folder, 'echo "$CNI_COMMAND" >"$OUT/verb"')
    delegate(call(folder, command), "other")
    assert (folder / "verb").read_text() == f"{command}\n"
    delegate(call(folder, Command.ADD), "other", Command.DEL)
    assert (folder / "verb").read_text() == "DEL\n"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("""echo '{"code": 11, "msg": "later", "details": "pool is full"}'; exit 1""", 11, "later; pool is full"),
        ("""echo '{"code": 4000, "msg": "own"}'; exit 3""", 4000, "own"),
        ("exit 1", 999, "netplugin failed with no error message: exit status 1; other"),
        ("echo '{}'; exit 1", 999, "netplugin failed with no error message: exit status 1"),
        ("echo died >&2; exit 2", 999, "netplugin failed: 'died': exit status 2; other"),
        ("kill -9 $$", 999, "netplugin failed with no error message: signal 9; other"),
        ("echo nonsense; exit 1", 999, "netplugin failed but error parsing its diagnostic message: other: no JSON"),
        ('echo \'{"code": "x"}\'; exit 1', 999, "netplugin failed but error parsing its diagnostic message: other: code: "),
        ("true", 6, "result of other: no JSON: Input data was truncated; the text is empty"),
        ("echo '{\"ips\": 3}'", 6, "result of other: ips: expected a list, got 3"),
        ('echo \'{"cniVersion": "9.0.0"}\'', 6, "result of other: cniVersion: '9.0.0' is not known"),
    ],
)
def test_an_answer_that_is_none(folder: Path, body: str, code: int, message: str) -> None:
    script(folder, f'[ "$CNI_COMMAND" = ADD ] || exit 0\n{body}')
    with pytest.raises(CniError) as caught:
        delegate_add(call(folder), "other")
    assert caught.value.code == code
    assert str(caught.value).startswith(message)


def test_a_failed_add_is_followed_by_a_del(folder: Path) -> None:
    script(folder, """echo "$CNI_COMMAND" >>"$OUT/verbs"; echo '{"code": 7, "msg": "no"}'; exit 1""")
    request = call(folder)
    with pytest.raises(CniError, match="^no$"):
        delegate_add(request, "other")
    assert (folder / "verbs").read_text() == "ADD\nDEL\n"
    assert request.stderr == ["other: DEL after a failed ADD failed as well: no"]


def test_at_the_deadline_it_is_killed_with_its_children_and_reaped(folder: Path) -> None:
    script(folder, 'sleep 60 & echo "$$ $!" >"$OUT/pids"; wait')
    begun = time.monotonic()
    with pytest.raises(
        DeadlineExceeded, match=r"^other \(.*/other\) did not end its DEL within 0.3 s and was killed"
    ) as caught:
        delegate(call(folder, Command.DEL), "other", seconds=0.3)
    assert time.monotonic() - begun < 5
    assert as_cni_error(caught.value).code == Code.TRY_AGAIN
    for pid in (folder / "pids").read_text().split():
        assert ended(int(pid)), f"process {pid} outlived its deadline"


def test_a_child_that_stays_behind_holds_nothing_up(folder: Path) -> None:
    script(folder, """sleep 5 & echo $! >"$OUT/pid"; echo '{}'""")
    begun = time.monotonic()
    assert delegate_add(call(folder), "other") == Result()
    assert time.monotonic() - begun < 4
    os.kill(int((folder / "pid").read_text()), 9)


def test_much_output_and_input_that_is_not_read(folder: Path) -> None:
    script(
        folder,
        """head -c 300000 /dev/zero >&2; printf '{"ips": [], "more": "'; head -c 300000 /dev/zero | tr '\\0' x; echo '"}'""",
    )
    assert delegate_add(call(folder), "other") == Result()


def test_more_output_than_is_read_is_refused(folder: Path) -> None:
    script(folder, "[ $CNI_COMMAND = DEL ] || head -c 20000000 /dev/zero")
    with pytest.raises(CniError, match="^result of other: 16777217 bytes are too many"):
        delegate_add(call(folder), "other")


@pytest.mark.parametrize("kind", ["", "a/b", "/bin/true", "../other", "a\0b"])
def test_a_type_is_a_plain_name(folder: Path, kind: str) -> None:
    with pytest.raises(CniError, match="^invalid plugin name: ") as caught:
        find_executable(kind, (str(folder),))
    assert caught.value.code == Code.INVALID_CONFIG


def test_folders_are_searched_in_order_for_a_file(folder: Path) -> None:
    first, second = folder / "a", folder / "b"
    for made in (first, second):
        made.mkdir()
    wanted = script(second, "exit 0")
    (first / "other").mkdir()
    assert find_executable("other", (str(first), "/nonexistent", str(second))) == str(wanted)
    with pytest.raises(CniError, match=r'failed to find plugin "none" in path \[/x /y\]; install it') as caught:
        find_executable("none", ("/x", "/y"))
    assert caught.value.code == Code.INVALID_CONFIG
    for kind in (".", ".."):
        with pytest.raises(CniError, match="failed to find plugin"):
            find_executable(kind, (str(folder),))


def test_what_cannot_be_run_is_said_so(folder: Path) -> None:
    (folder / "other").write_text("no program")
    for mode, reason in ((0o644, "Permission denied"), (0o755, "Exec format error")):
        (folder / "other").chmod(mode)
        with pytest.raises(CniError, match=f"^{folder}/other cannot be run: {reason}") as caught:
            delegate(call(folder, Command.DEL), "other")
        assert caught.value.code == Code.IO_FAILURE


def test_a_file_that_is_being_written_is_tried_again_later(folder: Path) -> None:
    path = script(folder, "exit 0")
    with path.open("a"), pytest.raises(CniError, match="cannot be run: Text file busy") as caught:
        delegate(call(folder, Command.DEL), "other")
    assert caught.value.code == Code.TRY_AGAIN
