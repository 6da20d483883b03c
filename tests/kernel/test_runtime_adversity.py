"""A container where the host fails it: full disks, files lost with the power, control groups that are another user's."""

import errno
import os
import select
import subprocess
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.runtime import cgroups
from netlib.runtime.container import LOST_CODE
from tests.kernel.runtime_world import World

pytestmark = pytest.mark.needs_cgroups


def test_a_full_disk_keeps_neither_the_exit_code_nor_anything_else_back(tmp_path: Path) -> None:
    state = tmp_path / "small"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(state)], check=True)
    world = World(Config(state_dir=state, run_dir=tmp_path / "run"))
    try:
        container = world.box("sh", "-c", "cat /dev/zero > /srv/fill; exit 3")
        assert world.foreground(container)[0] == 3
        socket_path = world.runtime.socket_path(container)
        _wait_for_end(world.minder(container))
        assert world.runtime.state(container).code == LOST_CODE
        assert not socket_path.exists()
        groups = [f"{path}/{cgroups.PARENT}/{container.container_id}" for path in cgroups.own_hierarchies().values()]
        assert [group for group in groups if os.path.exists(group)] == []
    finally:
        world.clear()
        subprocess.run(["umount", str(state)], check=True)


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
