"""What a container sees and may do: namespaces, capabilities, files, volumes, and the traps around them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.errors import ConfigError, KernelError
from netlib.runtime.container import Runtime
from netlib.runtime.spec import Volume
from tests.kernel.runtime_world import World

pytestmark = pytest.mark.needs_cgroups


@pytest.fixture
def runtime(world: World) -> Runtime:
    return world.runtime


def _namespaces(pid: int | str) -> dict[str, str]:
    kinds = ("uts", "ipc", "pid", "mnt", "cgroup", "net", "user")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


# --- isolation ----------------------------------------------------------------------------------------------------------


@pytest.mark.vm
def test_namespaces_are_its_own(world: World, runtime: Runtime) -> None:
    container = world.box("sleep", "60", hostname="inner", domainname="example.org")
    pid = runtime.launch(container)
    inside, outside = _namespaces(pid), _namespaces("self")
    assert [kind for kind in inside if inside[kind] != outside[kind]] == ["uts", "ipc", "pid", "mnt", "cgroup"]
    script = "test $(hostname) = inner && test $(domainname) = example.org"
    assert world.exec(container, "sh", "-c", script)[0] == 0
    assert os.uname().nodename != "inner"


def test_the_command_is_process_1_and_sees_no_other(world: World) -> None:
    code, out, _ = world.run("sh", "-c", "echo $$; ls /proc | grep '^[0-9]'; cat /proc/1/comm")
    numbers = out.split()
    assert code == 0
    assert numbers[0] == "1"
    assert numbers[-1] == "sh"
    assert len(numbers) < 8


def test_shared_memory_and_semaphores_are_its_own(world: World) -> None:
    made = subprocess.run(["ipcmk", "-M", "4096"], capture_output=True, text=True, check=True).stdout.split()[-1]
    try:
        _, out, _ = world.run("ipcs", "-m")
        assert "4096" not in out
    finally:
        subprocess.run(["ipcrm", "-m", made], check=True, capture_output=True)


def test_capabilities_are_dockers(world: World) -> None:
    _, out, _ = world.run("grep", "^Cap", "/proc/self/status")
    sets = dict(line.split(":\t") for line in out.splitlines())
    full = "00000000a80425fb"
    assert sets == {"CapInh": "0" * 16, "CapPrm": full, "CapEff": full, "CapBnd": full, "CapAmb": "0" * 16}


@pytest.mark.parametrize(
    "action",
    [
        "mount -t tmpfs tmpfs /mnt",
        "echo 1 > /proc/sys/kernel/panic",
        "echo 1 > /proc/sysrq-trigger",
        pytest.param("mkdir /sys/fs/cgroup/pids/mine || mkdir /sys/fs/cgroup/mine", marks=pytest.mark.vm),
        "cat /proc/kcore | head -c1 | grep -q .",
        "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk",
        "mknod /dev/disk b 254 0 && head -c1 /dev/disk",
        "mknod /volume/disk c 1 5 && head -c1 /volume/disk",
        "hostname other",
        "ip link add x type bridge",
        "unshare --net true",
    ],
)
def test_what_root_in_a_container_may_not(world: World, tmp_path: Path, action: str) -> None:
    code, _, _ = world.run("sh", "-c", action, volumes=(Volume(str(tmp_path), "/volume"),))
    assert code not in (0, 125, 127)


def test_as_another_user_there_are_no_capabilities(world: World) -> None:
    _, out, _ = world.run(
        "sh", "-c", "id -u; id -g; grep CapEff /proc/self/status; echo to stderr > /dev/stderr", user="nobody:daemon"
    )
    assert out.split() == ["65534", "1", "CapEff:", "0" * 16]


def test_unknown_user_is_refused(world: World) -> None:
    with pytest.raises(KernelError, match="no user 'nosuch'"):
        world.run("true", user="nosuch")


@pytest.mark.parametrize("user", ["4294967295", "2147483648", "99999999999999999999", "0:4294967295", "high", "²"])
def test_an_id_out_of_range_is_refused(world: World, tmp_path: Path, user: str) -> None:
    """To setresuid(2), 4294967295 means "as it is": the command would be root's."""
    passwd = tmp_path / "passwd"
    passwd.write_text("high:x:4294967295:4294967295::/:/bin/sh\n")
    with pytest.raises(KernelError, match="is no user or group id|no user"):
        world.run("id", user=user, volumes=(Volume(str(passwd), "/etc/passwd"),))


@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "link to nowhere", "memory"])
@pytest.mark.timeout(20)
def test_a_user_file_that_is_none(world: World, tmp_path: Path, kind: str) -> None:
    """A container fills its /etc as it likes: what is no plain file holds nobody up and has no users."""
    container = world.living("sh", "-c", f"rm /etc/passwd /etc/group; {_USER_FILES[kind]}; echo ready; exec sleep 60")
    world.ready(container)
    assert world.exec(container, "sh", "-c", "echo fine")[:2] == (0, "fine\n")
    code, _, complaint = world.exec(container, "true", user="bob")
    assert code == 126
    assert complaint == "netlib: no user 'bob' in the container's /etc/passwd\n"


_USER_FILES = {
    "pipe": "mkfifo /etc/passwd /etc/group",
    "folder": "mkdir /etc/passwd /etc/group",
    "endless": "ln -s /dev/zero /etc/passwd; ln -s /dev/zero /etc/group",
    "memory": "ln -s /proc/self/mem /etc/passwd; ln -s /proc/self/mem /etc/group",
    "link to nowhere": "ln -s /nowhere /etc/passwd; ln -s /nowhere /etc/group",
}


def test_system_folders_are_there(world: World) -> None:
    script = """set -e
        echo x > /dev/null; head -c4 /dev/zero | wc -c; : > /dev/shm/a; ls /dev/mqueue /dev/pts; ls -l /dev/stdin
        awk '$2 == "/dev/shm"' /proc/mounts | grep -c size=65536k"""
    code, out, err = world.run("sh", "-c", script)
    assert (code, err) == (0, "")
    assert "4" in out.split()


# --- files --------------------------------------------------------------------------------------------------------------


def test_what_it_writes_is_thrown_away_with_it(world: World, runtime: Runtime) -> None:
    container = world.box("sh", "-c", "test ! -e /srv/mark; code=$?; echo x > /srv/mark; rm -rf /opt; exit $code")
    assert world.foreground(container)[0] == 0
    assert not Path("/srv/mark").exists()
    assert Path("/opt").exists()
    assert world.foreground(container)[0] == 1  # its files survive its end, not its removal
    runtime.remove(container)
    assert not runtime.folder(container).exists()


def test_the_hosts_state_and_run_folders_are_hidden(world: World, config: Config, tmp_path: Path) -> None:
    config.state_dir.mkdir(exist_ok=True)
    (config.state_dir / "secret").write_text("x")
    code, out, _ = world.run("sh", "-c", f"ls -A {config.state_dir} {config.run_dir} /run 2>/dev/null")
    assert "secret" not in out
    assert "netns" not in out
    assert code != 0  # in a test host they are in /run, which is new


def test_a_state_folder_outside_run_is_hidden(tmp_path: Path) -> None:
    state = Path("/var/lib/netlib/hidden")  # a tmpfs in a test host, not below /run
    state.mkdir()
    (state / "secret").write_text("x")
    world = World(Config(state_dir=state, run_dir=tmp_path / "run"))
    try:
        code, out, err = world.run("sh", "-c", f"ls -A {state}; touch {state}/y")
        assert (code, out) == (1, "")
        assert "ead-only" in err
    finally:
        world.clear()
        shutil.rmtree(state)


def test_separately_mounted_folders_are_read_only(world: World) -> None:
    code, _, err = world.run("touch", "/etc/netlib-test")  # a mount of its own in a test host
    assert code == 1
    assert "ead-only" in err


def _rootfs(folder: Path) -> Path:
    """A small root file system around the host's static busybox, or the shell with what it links to."""
    for name in ("bin", "etc"):
        (folder / name).mkdir(parents=True)
    needed = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout.split()
    libraries = [word for word in needed if word.startswith("/")]
    for path in ["/bin/sh", "/bin/cat", *libraries]:
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(path).read_bytes())
        target.chmod(0o755)
    return folder


def test_root_file_system_from_a_folder_stays_clean(world: World, tmp_path: Path) -> None:
    rootfs = _rootfs(tmp_path / "root")
    before = sorted(str(path) for path in rootfs.rglob("*"))
    code, out, err = world.run(
        "/bin/sh", "-c", "echo hello > /etc/new; read line < /etc/new; echo $line; echo /*", rootfs=str(rootfs)
    )
    assert (code, err) == (0, "")
    assert out.split()[0] == "hello"
    assert "/proc" in out.split()
    assert "/home" not in out.split()
    assert sorted(str(path) for path in rootfs.rglob("*")) == before


def test_missing_root_file_system_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        world.run("true", rootfs=str(tmp_path / "none"))


def test_a_layer_that_cannot_be_kept_on_disk_is_kept_in_memory(tmp_path: Path) -> None:
    state = Path("/etc/netlib-state")  # on an overlay in a test host, which cannot carry another one's upper layer
    world = World(Config(state_dir=state, run_dir=tmp_path / "run"))
    try:
        assert world.run("sh", "-c", "echo x > /srv/mark && cat /srv/mark") == (0, "x\n", "")
    finally:
        world.clear()
        shutil.rmtree(state)


def test_volumes(world: World, tmp_path: Path) -> None:
    shared, fixed = tmp_path / "shared", tmp_path / "fixed"
    fixed.mkdir()
    (fixed / "file").write_text("seen\n")
    volumes = (Volume(str(shared), "/data/deep"), Volume(str(fixed), "/fixed", readonly=True))
    code, out, err = world.run("sh", "-c", "cat /fixed/file; echo new > /data/deep/out; echo no > /fixed/file", volumes=volumes)
    assert (code, out) == (2, "seen\n")
    assert "ead-only" in err
    assert (shared / "out").read_text() == "new\n"  # the missing source was made
    assert (fixed / "file").read_text() == "seen\n"


def test_a_file_as_a_volume(world: World, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("mine\n")
    volumes = (Volume(str(tmp_path / "conf"), "/srv/app/conf"), Volume(str(tmp_path / "conf"), "/etc/hostname"))
    assert world.run("cat", "/srv/app/conf", "/etc/hostname", volumes=volumes)[1] == "mine\nmine\n"


@pytest.mark.parametrize("link", ["/../../../../../../..", "{outside}", "../../../../../../../../../../{outside}", "loop"])
def test_links_in_the_root_lead_no_volume_out_of_it(world: World, tmp_path: Path, link: str) -> None:
    rootfs, outside, source = _rootfs(tmp_path / "root"), tmp_path / "outside", tmp_path / "source"
    outside.mkdir()
    source.mkdir()
    (source / "file").write_text("x")
    (rootfs / "trap").symlink_to(link.format(outside=outside))
    if link == "loop":
        (rootfs / "loop").symlink_to("trap")
        with pytest.raises(KernelError, match="symbolic links"):
            world.run("/bin/sh", "-c", ":", rootfs=str(rootfs), volumes=(Volume(str(source), "/trap/in"),))
        return
    before = Path("/proc/self/mountinfo").read_text()
    code, out, _ = world.run("/bin/cat", "/trap/in/file", rootfs=str(rootfs), volumes=(Volume(str(source), "/trap/in"),))
    assert (code, out) == (0, "x")
    assert list(outside.iterdir()) == []
    assert not Path("/in").exists()
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_volume_cannot_hide_proc_behind_a_link(world: World, tmp_path: Path) -> None:
    rootfs = _rootfs(tmp_path / "root")
    (rootfs / "trap").symlink_to("/proc/self")
    with pytest.raises(KernelError, match="in /proc"):
        world.run("/bin/sh", "-c", ":", rootfs=str(rootfs), volumes=(Volume(str(tmp_path), "/trap"),))


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_system_folder_that_is_a_link_is_refused(world: World, tmp_path: Path, name: str) -> None:
    rootfs = _rootfs(tmp_path / "root")
    (rootfs / "elsewhere").mkdir()
    (rootfs / name).symlink_to("/elsewhere")
    with pytest.raises(KernelError, match=f"/{name} of its root file system must be a folder"):
        world.run("/bin/sh", "-c", ":", rootfs=str(rootfs))


def test_a_root_file_system_cannot_pass_its_own_proc_for_the_kernels(world: World, tmp_path: Path) -> None:
    """The way to /proc leads by /dev/pts, a link until something is mounted there: proc would lie in /a and /proc be a fake."""
    rootfs = _rootfs(tmp_path / "root")
    for folder in ("a/b/c", "a/fake", "dev", "fake/sys/kernel", "fake/self"):
        (rootfs / folder).mkdir(parents=True)
    (rootfs / "dev/pts").symlink_to("/a/b/c")
    (rootfs / "proc").symlink_to("/dev/pts/../../fake")
    (rootfs / "fake/sys/kernel/cap_last_cap").write_text("0\n")
    (rootfs / "fake/self/setgroups").write_text("deny\n")
    with pytest.raises(KernelError, match="/proc of its root file system must be a folder"):
        world.run("/bin/sh", "-c", ":", rootfs=str(rootfs))


def test_a_volume_that_does_not_fit_its_target_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for source, target in ((tmp_path / "file", "/etc"), (tmp_path, "/etc/passwd")):
        with pytest.raises(KernelError, match="is a folder, .* is not"):
            world.run("true", volumes=(Volume(str(source), target),))
    with pytest.raises(ConfigError, match="volume source .*/file/in is missing and cannot be made"):
        world.run("true", volumes=(Volume(str(tmp_path / "file/in"), "/data"),))


def test_a_working_folder_that_is_none_is_refused(world: World) -> None:
    with pytest.raises(KernelError, match="/etc/passwd is no folder in the container"):
        world.run("true", workdir="/etc/passwd")


def test_nothing_is_mounted_on_the_host(world: World, runtime: Runtime, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    runtime.launch(world.box("sleep", "60", volumes=(Volume(str(tmp_path), "/data"),)))
    assert Path("/proc/self/mountinfo").read_text() == before


def test_folder_and_environment(world: World) -> None:
    _, out, _ = world.run(
        "sh", "-c", "pwd; echo $A $HOME $PATH $HOSTNAME; umask", workdir="/srv/new/place", environment={"A": "b"}, hostname="h"
    )
    assert out.split() == [
        "/srv/new/place",
        "b",
        "/root",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "h",
        "0022",
    ]


def _in_user_namespace(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Do ``netlib ARGUMENTS`` as root of a user namespace of its own, with nothing of the machine's root."""
    environment = {**os.environ, "NETLIB_STATE_DIR": str(state / "state"), "NETLIB_RUN_DIR": str(state / "run")}
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    command = [*unshare, sys.executable, "-m", "netlib", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_run_in_a_user_namespace(tmp_path: Path) -> None:
    """As README says: no sudo. What is mounted below / is locked there, other users and PID namespaces are out of reach."""
    script = "id -u; echo $$; echo mark > /srv/mark && cat /srv/mark; ls /proc/self/ns >/dev/null && ip -brief link"
    done = _in_user_namespace(tmp_path, "run", "--rm", "--network", "none", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    uid, pid, mark, link = done.stdout.splitlines()
    assert (uid, pid, mark, link.split()[0]) == ("0", "1", "mark", "lo")
    assert not Path("/srv/mark").exists()


def test_a_user_that_a_user_namespace_does_not_have(tmp_path: Path) -> None:
    done = _in_user_namespace(tmp_path, "run", "--rm", "--network", "none", "-u", "1234", "true")
    assert done.returncode == 125
    assert done.stderr.endswith(" cannot be started: become user 1234 and group 0: invalid argument\n")
