"""A container where the host fails it: full disks, files lost with the power, control groups that are another user's."""

import errno
import os
import resource
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.errors import KernelError
from netlib.runtime import cgroups
from netlib.runtime.container import LOST_CODE
from netlib.runtime.spec import Container
from tests.descriptors import open_descriptors
from tests.kernel.runtime_world import World

pytestmark = pytest.mark.needs_cgroups


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    """A runtime whose state folder is a disk of 1 MiB."""
    state = tmp_path / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(state)], check=True)
    world = World(Config(state_dir=state, run_dir=tmp_path / "run"))
    yield world
    world.clear()
    subprocess.run(["umount", "--lazy", str(state)], check=True)  # a minder that goes has its log open yet


def test_a_full_disk_keeps_neither_the_exit_code_nor_anything_else_back(small: World) -> None:
    container = small.box("sh", "-c", "cat /dev/zero > /srv/fill; exit 3")
    assert small.foreground(container)[0] == 3
    _assert_gone(small, container)
    assert small.runtime.state(container).code == 3
    refused = small.box("true")
    with pytest.raises(KernelError, match=f"cannot be started: write in {small.runtime.folder(refused)}: no space left"):
        small.runtime.launch(refused)
    assert _groups(refused) == []


@pytest.mark.vm
def test_an_end_that_cannot_be_kept_keeps_nothing_else_back(world: World) -> None:
    container = world.living("sleep", "60")
    (world.runtime.folder(container) / "exit.json.new").unlink()
    (world.runtime.folder(container) / "exit.json.new").mkdir()
    world.runtime.kill(container)
    _assert_gone(world, container)
    assert world.runtime.state(container).code == LOST_CODE


def _assert_gone(world: World, container: Container) -> None:
    """Wait for the minder's end; then nothing may be left that runs, or leads to who ran."""
    _wait_for_end(world.minder(container))
    assert not world.runtime.socket_path(container).exists()
    assert _groups(container) == []


def _groups(container: Container) -> list[str]:
    groups = [f"{path}/{cgroups.PARENT}/{container.container_id}" for path in cgroups.own_hierarchies().values()]
    return [group for group in groups if os.path.exists(group)]


@contextmanager
def _free_descriptors(count: int) -> Iterator[None]:
    """Let this process open *count* more files at a time."""
    used = set(open_descriptors())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = [number for number in range(1024) if number not in used][:count]
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest[-1] + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_few_descriptors_are_enough_to_start_a_container(world: World) -> None:
    with _free_descriptors(25):
        assert world.run("echo", "fine") == (0, "fine\n", "")


def test_too_few_descriptors_start_nothing_and_none_is_lost(world: World) -> None:
    before = open_descriptors()
    for count in (1, 3, 5, 7, 9, 10):
        with _free_descriptors(count), pytest.raises((KernelError, OSError), match=r"(?i)too many open files"):
            world.runtime.launch(world.box("true"))
    assert open_descriptors() == before


def _wait_for_end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([pidfd], [], [], 10)
    os.close(pidfd)


@pytest.mark.parametrize("text", ["", '{"pid":'])
def test_a_file_that_was_lost_with_the_power_blocks_nothing(world: World, text: str) -> None:
    container = world.box("true")
    world.runtime.launch(container)
    world.runtime.wait(container, 10)
    (world.runtime.folder(container) / "pid.json").write_text(text)
    assert world.runtime.state(container).status == "created"


def test_control_groups_of_another_user_are_passed_over(tmp_path: Path) -> None:
    """Root's are there, and cannot be searched, where the same machine's root has containers as well."""
    tmp_path.chmod(0o755)
    (tmp_path / cgroups.PARENT).mkdir(mode=0o700)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(tmp_path)  # the folders above are not open to others
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            cgroups.remove("mine", {"": "."})
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_minders_whose_group_is_taken_away_while_they_join_make_it_again(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says ENODEV when the group went after its file was opened."""
    answers = [OSError(number, os.strerror(number)), None]
    made: list[str] = []

    def join(pid: int, group: dict[str, str]) -> None:
        if error := answers.pop(0):
            raise error

    def create(group: str, where: dict[str, str]) -> dict[str, str]:
        made.append(group)
        return {}

    monkeypatch.setattr(cgroups, "join", join)
    monkeypatch.setattr(cgroups, "create", create)
    cgroups.join_minders({})
    assert made == [cgroups.MINDERS] * 2
    assert answers == []


def test_a_hierarchy_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cgroups.create("mine", {"": str(tmp_path / "none")})


def test_a_parent_that_another_process_is_just_making_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hierarchy of version 1 it has no processors yet, and a process cannot join a group without processors."""
    monkeypatch.setattr(cgroups, "PARENT", f"netlib-test-{os.getpid()}")
    where = cgroups.own_hierarchies()
    for mountpoint in where.values():
        os.mkdir(f"{mountpoint}/{cgroups.PARENT}")
    with subprocess.Popen(["sleep", "100"]) as process:
        try:
            cgroups.join(process.pid, cgroups.create("box", where))
        finally:
            cgroups.remove("box", where)  # which kills what is in it
            cgroups.remove_unused(where)
    assert not any(os.path.exists(f"{mountpoint}/{cgroups.PARENT}") for mountpoint in where.values())
