"""A container's processes, files and logs, without networks: isolation, exit codes, streams, terminals, crashes."""

import json
import os
import pty
import select
import signal
import subprocess
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.errors import CommandNotRun, ConfigError, Conflict, DeadlineExceeded, KernelError, NotFound
from netlib.names import new_id
from netlib.runtime import attach
from netlib.runtime.container import LOST_CODE, Runtime
from netlib.runtime.spec import RECORD_SUFFIX, Container, ContainerSpec, ExecSpec, Volume

pytestmark = pytest.mark.needs_cgroups

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runtime(config: Config) -> Runtime:
    return Runtime(config, reap=lambda _: [])


@pytest.fixture
def box(runtime: Runtime) -> Iterator[Callable[..., Container]]:
    """Make records of containers, and remove what became of them."""
    made: list[Container] = []

    def make(*command: str, **wanted: object) -> Container:
        container_id = new_id()
        spec = ContainerSpec(command=command, **wanted)  # type: ignore[arg-type]
        container = Container(
            id=container_id + RECORD_SUFFIX, name="box", created=0, spec=spec, hostname=spec.hostname or container_id[:12]
        )
        made.append(container)
        return container

    yield make
    for container in made:
        runtime.stop(container, 0)
        runtime.remove(container)


@pytest.fixture
def run(runtime: Runtime, box: Callable[..., Container]) -> Run:
    """Run a command in the foreground; answer with its exit code, output and error output."""

    def go(*command: str, given: bytes | None = None, **wanted: object) -> tuple[int, str, str]:
        container = box(*command, stdin=given is not None, **wanted)
        return _foreground(runtime, container, given)

    return go


def _foreground(runtime: Runtime, container: Container, given: bytes | None = None) -> tuple[int, str, str]:
    mine, theirs = attach.pair()
    reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
    with mine, theirs:
        runtime.launch(container, client=theirs, size=(33, 99))
        theirs.close()
        os.write(writes[0], given or b"")
        os.close(writes[0])
        code = attach.relay(
            mine,
            stdin=reads[0] if given is not None else None,
            stdout=writes[1],
            stderr=writes[2],
            tty=container.spec.tty,
            forward=lambda number: runtime.kill(container, number),
        )
    os.close(writes[1])
    os.close(writes[2])
    texts = []
    for fd in reads[1:]:
        with open(fd, "rb") as pipe:
            texts.append(pipe.read().decode())
    os.close(reads[0])
    return code, texts[0], texts[1]


def _namespaces(pid: int | str) -> dict[str, str]:
    kinds = ("uts", "ipc", "pid", "mnt", "cgroup", "net", "user")
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}


# --- isolation -----------------------------------------------------------------------------------------------------------


def test_namespaces_are_its_own(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sleep", "60", hostname="inner", domainname="example.org")
    pid = runtime.launch(container)
    inside, outside = _namespaces(pid), _namespaces("self")
    assert [kind for kind in inside if inside[kind] != outside[kind]] == ["uts", "ipc", "pid", "mnt", "cgroup"]
    assert (
        runtime.exec(container, ExecSpec(command=("sh", "-c", "test $(hostname) = inner && test $(domainname) = example.org")))
        == 0
    )
    assert os.uname().nodename != "inner"


def test_the_command_is_process_1_and_sees_no_other(run: Run) -> None:
    code, out, _ = run("sh", "-c", "echo $$; ls /proc | grep '^[0-9]'; cat /proc/1/comm")
    numbers = out.split()
    assert code == 0
    assert numbers[0] == "1"
    assert numbers[-1] == "sh"
    assert len(numbers) < 8


def test_shared_memory_and_semaphores_are_its_own(run: Run) -> None:
    made = subprocess.run(["ipcmk", "-M", "4096"], capture_output=True, text=True, check=True).stdout.split()[-1]
    try:
        _, out, _ = run("ipcs", "-m")
        assert "4096" not in out
    finally:
        subprocess.run(["ipcrm", "-m", made], check=True, capture_output=True)


def test_capabilities_are_dockers(run: Run) -> None:
    _, out, _ = run("grep", "^Cap", "/proc/self/status")
    sets = dict(line.split(":\t") for line in out.splitlines())
    full = "00000000a80425fb"
    assert sets == {"CapInh": "0" * 16, "CapPrm": full, "CapEff": full, "CapBnd": full, "CapAmb": "0" * 16}


@pytest.mark.parametrize(
    "action",
    [
        "mount -t tmpfs tmpfs /mnt",
        "echo 1 > /proc/sys/kernel/panic",
        "echo 1 > /proc/sysrq-trigger",
        "mkdir /sys/fs/cgroup/pids/mine || mkdir /sys/fs/cgroup/mine",
        "cat /proc/kcore | head -c1 | grep -q .",
        "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk",
        "mknod /dev/disk b 254 0 && head -c1 /dev/disk",
        "mknod /volume/disk c 1 5 && head -c1 /volume/disk",
        "hostname other",
        "ip link add x type bridge",
        "unshare --net true",
    ],
)
def test_what_root_in_a_container_may_not(run: Run, tmp_path: Path, action: str) -> None:
    code, _, _ = run("sh", "-c", action, volumes=(Volume(str(tmp_path), "/volume"),))
    assert code not in (0, 125, 127)


def test_as_another_user_there_are_no_capabilities(run: Run) -> None:
    _, out, _ = run(
        "sh", "-c", "id -u; id -g; grep CapEff /proc/self/status; echo to stderr > /dev/stderr", user="nobody:daemon"
    )
    assert out.split() == ["65534", "1", "CapEff:", "0" * 16]


def test_unknown_user_is_refused(run: Run) -> None:
    with pytest.raises(KernelError, match="no user nosuch"):
        run("true", user="nosuch")


def test_system_folders_are_there(run: Run) -> None:
    script = """set -e
        echo x > /dev/null; head -c4 /dev/zero | wc -c; : > /dev/shm/a; ls /dev/mqueue /dev/pts; ls -l /dev/stdin
        awk '$2 == "/dev/shm"' /proc/mounts | grep -c size=65536k"""
    code, out, err = run("sh", "-c", script)
    assert (code, err) == (0, "")
    assert "4" in out.split()


# --- files ---------------------------------------------------------------------------------------------------------------


def test_what_it_writes_is_thrown_away_with_it(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sh", "-c", "test ! -e /srv/mark; code=$?; echo x > /srv/mark; rm -rf /opt; exit $code")
    assert _foreground(runtime, container)[0] == 0
    assert not Path("/srv/mark").exists()
    assert Path("/opt").exists()
    assert _foreground(runtime, container)[0] == 1  # its files survive its end, not its removal
    runtime.remove(container)
    assert not runtime.folder(container).exists()


def test_the_hosts_state_and_run_folders_are_hidden(run: Run, config: Config, tmp_path: Path) -> None:
    config.state_dir.mkdir(exist_ok=True)
    (config.state_dir / "secret").write_text("x")
    code, out, _ = run("sh", "-c", f"ls -A {config.state_dir} {config.run_dir} /run 2>/dev/null")
    assert "secret" not in out
    assert "netns" not in out
    assert code != 0  # in a test host they are in /run, which is new


def test_a_state_folder_outside_run_is_hidden(box: Callable[..., Container], tmp_path: Path) -> None:
    state = Path("/var/lib/netlib/hidden")  # a tmpfs in a test host, not below /run
    runtime = Runtime(Config(state_dir=state, run_dir=tmp_path / "r"), reap=lambda _: [])
    state.mkdir(exist_ok=True)
    (state / "secret").write_text("x")
    container = box("sh", "-c", f"ls -A {state}; touch {state}/y")
    try:
        code, out, err = _foreground(runtime, container)
        assert (code, out) == (1, "")
        assert "ead-only" in err
    finally:
        runtime.remove(container)
        (state / "secret").unlink()
        (state / "containers").rmdir()
        state.rmdir()


def test_separately_mounted_folders_are_read_only(run: Run) -> None:
    code, _, err = run("touch", "/etc/netlib-test")  # a mount of its own in a test host
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


def test_root_file_system_from_a_folder_stays_clean(run: Run, tmp_path: Path) -> None:
    rootfs = _rootfs(tmp_path / "root")
    before = sorted(str(path) for path in rootfs.rglob("*"))
    code, out, err = run(
        "/bin/sh", "-c", "echo hello > /etc/new; read line < /etc/new; echo $line; echo /*", rootfs=str(rootfs)
    )
    assert (code, err) == (0, "")
    assert out.split()[0] == "hello"
    assert "/proc" in out.split()
    assert "/home" not in out.split()
    assert sorted(str(path) for path in rootfs.rglob("*")) == before


def test_missing_root_file_system_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        run("true", rootfs=str(tmp_path / "none"))


def test_a_layer_that_cannot_be_kept_on_disk_is_kept_in_memory(box: Callable[..., Container], tmp_path: Path) -> None:
    state = Path("/etc/netlib-state")  # on an overlay in a test host, which cannot carry another one's upper layer
    runtime = Runtime(Config(state_dir=state, run_dir=tmp_path / "r"), reap=lambda _: [])
    container = box("sh", "-c", "echo x > /srv/mark && cat /srv/mark")
    try:
        assert _foreground(runtime, container)[:2] == (0, "x\n")
    finally:
        runtime.remove(container)
        (state / "containers").rmdir()
        state.rmdir()


def test_volumes(run: Run, tmp_path: Path) -> None:
    shared, fixed = tmp_path / "shared", tmp_path / "fixed"
    fixed.mkdir()
    (fixed / "file").write_text("seen\n")
    volumes = (Volume(str(shared), "/data/deep"), Volume(str(fixed), "/fixed", readonly=True))
    code, out, err = run("sh", "-c", "cat /fixed/file; echo new > /data/deep/out; echo no > /fixed/file", volumes=volumes)
    assert (code, out) == (2, "seen\n")
    assert "ead-only" in err
    assert (shared / "out").read_text() == "new\n"  # the missing source was made
    assert (fixed / "file").read_text() == "seen\n"


def test_a_file_as_a_volume(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("mine\n")
    volumes = (Volume(str(tmp_path / "conf"), "/srv/app/conf"), Volume(str(tmp_path / "conf"), "/etc/hostname"))
    assert run("cat", "/srv/app/conf", "/etc/hostname", volumes=volumes)[1] == "mine\nmine\n"


@pytest.mark.parametrize("link", ["/../../../../../../..", "{outside}", "../../../../../../../../../../{outside}", "loop"])
def test_links_in_the_root_lead_no_volume_out_of_it(run: Run, tmp_path: Path, link: str) -> None:
    rootfs, outside, source = _rootfs(tmp_path / "root"), tmp_path / "outside", tmp_path / "source"
    outside.mkdir()
    source.mkdir()
    (source / "file").write_text("x")
    (rootfs / "trap").symlink_to(link.format(outside=outside))
    if link == "loop":
        (rootfs / "loop").symlink_to("trap")
        with pytest.raises(KernelError, match="symbolic links"):
            run("/bin/sh", "-c", ":", rootfs=str(rootfs), volumes=(Volume(str(source), "/trap/in"),))
        return
    before = Path("/proc/self/mountinfo").read_text()
    code, out, _ = run("/bin/cat", "/trap/in/file", rootfs=str(rootfs), volumes=(Volume(str(source), "/trap/in"),))
    assert (code, out) == (0, "x")
    assert list(outside.iterdir()) == []
    assert not Path("/in").exists()
    assert Path("/proc/self/mountinfo").read_text() == before


def test_a_volume_cannot_hide_proc_behind_a_link(run: Run, tmp_path: Path) -> None:
    rootfs = _rootfs(tmp_path / "root")
    (rootfs / "trap").symlink_to("/proc/self")
    with pytest.raises(KernelError, match="in /proc"):
        run("/bin/sh", "-c", ":", rootfs=str(rootfs), volumes=(Volume(str(tmp_path), "/trap"),))


def test_nothing_is_mounted_on_the_host(runtime: Runtime, box: Callable[..., Container], tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    runtime.launch(box("sleep", "60", volumes=(Volume(str(tmp_path), "/data"),)))
    assert Path("/proc/self/mountinfo").read_text() == before


def test_folder_and_environment(run: Run) -> None:
    _, out, _ = run(
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


# --- exit codes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$; exit 4", 4), ("sleep 9 & kill -9 $!; wait $!", 137)]
)
def test_exit_code(run: Run, command: str, code: int) -> None:
    assert run("sh", "-c", command)[0] == code


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("nosuch", 127, "not found in the container's PATH"),
        ("/no/such", 127, "no such file"),
        ("/etc/passwd", 126, "ermission denied"),
        ("/srv", 126, "is a directory"),
    ],
)
def test_command_that_cannot_be_started(
    runtime: Runtime, box: Callable[..., Container], command: str, code: int, sentence: str
) -> None:
    container = box(command)
    with pytest.raises(CommandNotRun, match=sentence) as caught:
        runtime.launch(container)
    assert caught.value.exit_code == code
    assert runtime.state(container).status == "created"


def test_killed_from_outside(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sleep", "60")
    runtime.launch(container)
    runtime.kill(container, signal.SIGKILL)
    assert runtime.wait(container, 10) == 137
    state = runtime.state(container)
    assert (state.status, state.code) == ("exited", 137)
    assert state.finished >= state.started > 0


def test_stop_asks_first_and_kills_later(runtime: Runtime, box: Callable[..., Container]) -> None:
    polite = box("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    runtime.launch(polite)
    _ready(runtime, polite)
    assert runtime.stop(polite, 10) == 7
    stubborn = box("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    runtime.launch(stubborn)
    _ready(runtime, stubborn)
    assert runtime.stop(stubborn, 0.3) == 137
    assert runtime.stop(stubborn) == 137  # it does not run any more: nothing to do


def _ready(runtime: Runtime, container: Container) -> None:
    for entry in runtime.logs(container, follows=True):
        if entry.log == "ready\n":
            return


def test_wait_has_a_deadline(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sleep", "60")
    runtime.launch(container)
    with pytest.raises(DeadlineExceeded):
        runtime.wait(container, 0.05)


def test_a_running_container_is_not_started_again_nor_removed(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sleep", "60")
    runtime.launch(container)
    with pytest.raises(Conflict, match="running"):
        runtime.launch(container)
    with pytest.raises(Conflict, match="running"):
        runtime.remove(container)
    assert runtime.state(container).running


# --- input, output, terminals --------------------------------------------------------------------------------------------


def test_streams_are_told_apart(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sh", "-c", "echo out; echo err >&2; printf tail")
    assert _foreground(runtime, container) == (0, "out\ntail", "err\n")
    assert sorted((entry.stream, entry.log) for entry in runtime.logs(container)) == [
        ("stderr", "err\n"),
        ("stdout", "out\n"),
        ("stdout", "tail"),
    ]
    assert [entry.log for entry in runtime.logs(container, tail=1, follows=True)] == ["tail"]


def test_input_passes_whole(run: Run) -> None:
    given = b"".join(b"%d\n" % number for number in range(8000))  # more than a pipe holds would block the test's own writer
    code, out, _ = run("cat", given=given)
    assert (code, out) == (0, given.decode())


def test_much_output_and_input_at_once_do_not_block(runtime: Runtime, box: Callable[..., Container], tmp_path: Path) -> None:
    container = box("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; cat", stdin=True)
    (tmp_path / "in").write_bytes(b"y" * 2_000_000)
    mine, theirs = attach.pair()
    with mine, theirs, open(tmp_path / "in", "rb") as given, open(tmp_path / "out", "wb") as out:
        runtime.launch(container, client=theirs)
        theirs.close()
        code = attach.relay(mine, stdin=given.fileno(), stdout=out.fileno(), stderr=2, tty=False, forward=lambda _: None)
    assert code == 0
    assert (tmp_path / "out").read_bytes() == b"x" * 3_000_000 + b"y" * 2_000_000


def test_without_stdin_there_is_none(run: Run) -> None:
    assert run("cat") == (0, "", "")


def test_terminal(run: Run) -> None:
    code, out, _ = run(
        "sh", "-c", "tty; stty size; test -t 0 && test -t 1 && test -t 2 && ls -l /dev/console | cut -c1", tty=True
    )
    assert (code, out) == (0, "/dev/pts/0\r\n33 99\r\nc\r\n")


def test_typing_into_a_terminal(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sh", "-c", "stty -echo; echo ready; read line; echo got $line; sleep 60", tty=True, stdin=True)
    mine, theirs = attach.pair()
    master, slave = pty.openpty()
    tty.setraw(slave)
    read, write = os.pipe()
    with mine, theirs:
        runtime.launch(container, client=theirs)
        theirs.close()
        _ready_terminal(runtime, container)
        os.write(master, b"hello\n")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = attach.relay(mine, stdin=slave, stdout=write, stderr=write, tty=True, forward=lambda _: None)
            finally:
                os._exit(code)
        os.close(write)
        with open(read, "rb", buffering=0) as output:
            seen = b""
            while b"got hello" not in seen:
                data = output.read(1000)
                assert data
                seen += data
        os.write(master, b"\x03")  # control-C reaches the container's terminal, which sends SIGINT to sleep
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    os.close(master)
    os.close(slave)


def _ready_terminal(runtime: Runtime, container: Container) -> None:
    for entry in runtime.logs(container, follows=True):
        if "ready" in entry.log:
            return


def test_attaching_later_gives_the_output_from_then_on(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sh", "-c", "read line; echo $line", stdin=True)
    runtime.launch(container)
    with attach.connect(runtime.socket_path(container), output=True) as connection:
        connection.send(b"ihello\n")
        assert connection.recv(100) == b"ohello\n"
        assert attach.wait(connection, 10) == 0
    with pytest.raises(NotFound):
        attach.connect(runtime.socket_path(container), output=True)


def test_logs_can_be_followed(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sh", "-c", "echo one; read line; echo two", stdin=True)
    runtime.launch(container)
    seen = []
    for entry in runtime.logs(container, follows=True):
        seen.append(entry.log)
        if entry.log == "one\n":
            with attach.connect(runtime.socket_path(container), output=False) as connection:
                connection.send(b"i\n")
                attach.wait(connection, 10)
    assert seen == ["one\n", "two\n"]


def test_the_foreground_passes_signals_on(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
    mine, theirs = attach.pair()
    with mine, theirs:
        runtime.launch(container, client=theirs)
        theirs.close()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = attach.relay(
                    mine, stdin=None, stdout=write, stderr=2, tty=False, forward=lambda n: runtime.kill(container, n)
                )
            finally:
                os._exit(code)
        os.read(read, 100)  # "ready": from here on both sides listen
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        os.close(read)
        os.close(write)


# --- exec ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def living(runtime: Runtime, box: Callable[..., Container]) -> Container:
    container = box("sleep", "60", environment={"A": "1"}, workdir="/srv")
    runtime.launch(container)
    return container


def _exec(
    runtime: Runtime, container: Container, *command: str, given: bytes | None = None, **wanted: object
) -> tuple[int, str, str]:
    spec = ExecSpec(command=command, stdin=given is not None, **wanted)  # type: ignore[arg-type]
    reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
    os.write(writes[0], given or b"")
    os.close(writes[0])
    code = runtime.exec(container, spec, stdio=(reads[0], writes[1], writes[2]))
    os.close(writes[1])
    os.close(writes[2])
    texts = []
    for fd in reads:
        with open(fd, "rb") as pipe:
            texts.append(pipe.read().decode())
    return code, texts[1], texts[2]


def test_exec_joins_everything(runtime: Runtime, living: Container) -> None:
    script = """for kind in uts ipc pid mnt cgroup net; do readlink /proc/self/ns/$kind; done
        cat /proc/self/cgroup; grep CapEff /proc/self/status"""
    code, out, err = _exec(runtime, living, "sh", "-c", script)
    lines = out.splitlines()
    pid = runtime.state(living).pid
    assert (code, err) == (0, "")
    assert lines[:6] == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("uts", "ipc", "pid", "mnt", "cgroup", "net")]
    assert all(line.endswith(":/") for line in lines[6:-1] if "name=" in line or line.startswith("0::"))
    assert lines[-1] == "CapEff:\t00000000a80425fb"


def test_exec_options(runtime: Runtime, living: Container) -> None:
    assert _exec(runtime, living, "sh", "-c", "pwd; echo $A $B", environment={"B": "2"})[1] == "/srv\n1 2\n"
    assert _exec(runtime, living, "sh", "-c", "pwd; id -u", workdir="/tmp", user="nobody")[1] == "/tmp\n65534\n"
    assert _exec(runtime, living, "cat", given=b"passed\n") == (0, "passed\n", "")
    assert _exec(runtime, living, "cat") == (0, "", "")
    assert _exec(runtime, living, "sh", "-c", "tty; echo err >&2", tty=True)[:2] == (0, "/dev/pts/0\r\nerr\r\n")


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_exec_exit_code(runtime: Runtime, living: Container, command: str, code: int) -> None:
    assert _exec(runtime, living, "sh", "-c", command)[0] == code


@pytest.mark.parametrize(("command", "code"), [("nosuch", 127), ("/etc/passwd", 126)])
def test_exec_of_what_cannot_be_started(runtime: Runtime, living: Container, command: str, code: int) -> None:
    found, _, err = _exec(runtime, living, command)
    assert found == code
    assert err.startswith("netlib: ")
    assert len(err.splitlines()) == 1


def test_exec_imports_nothing_from_the_container(runtime: Runtime, box: Callable[..., Container], tmp_path: Path) -> None:
    """Whoever fills the root must not get to run code with the host's rights."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("signal", "enum", "termios", "encodings/idna"):
        (trap / name).parent.mkdir(exist_ok=True)
        (trap / f"{name}.py").write_text("open('/srv/trapped', 'w')\n")
    library = str(Path(os.__file__).parent)
    container = box("sh", "-c", "echo started; test ! -e /srv/trapped", tty=True, volumes=(Volume(str(trap), library),))
    assert _foreground(runtime, container)[0] == 0
    container = box("sleep", "60", volumes=(Volume(str(trap), library),))
    runtime.launch(container)
    assert _exec(runtime, container, "sh", "-c", "test ! -e /srv/trapped", tty=True)[0] == 0


def test_exec_detached_goes_on_by_itself(runtime: Runtime, living: Container) -> None:
    assert _exec(runtime, living, "sh", "-c", "mkfifo /tmp/f; echo there > /tmp/f", detach=True) == (0, "", "")
    assert _exec(runtime, living, "sh", "-c", "while [ ! -p /tmp/f ]; do :; done; cat /tmp/f")[1] == "there\n"


def test_exec_in_an_ended_container_is_refused(runtime: Runtime, living: Container) -> None:
    runtime.stop(living, 0)
    with pytest.raises(Conflict, match="not running"):
        runtime.exec(living, ExecSpec(command=("true",)))


def test_what_was_executed_ends_with_the_container(runtime: Runtime, living: Container) -> None:
    with runtime.exec_command(living, ExecSpec(command=("sh", "-c", "echo ready; exec sleep 60"))) as arguments:
        helper = subprocess.Popen(arguments, close_fds=False, stdout=subprocess.PIPE)
    with helper:
        assert helper.stdout is not None
        assert helper.stdout.readline() == b"ready\n"
        runtime.stop(living, 0)
        assert helper.wait(10) == 137


# --- crashes -------------------------------------------------------------------------------------------------------------


def _minder(runtime: Runtime, container: Container) -> int:
    return int(json.loads((runtime.folder(container) / "pid.json").read_text())["minder"])


def test_a_container_dies_with_its_minder(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sh", "-c", "sleep 60 & sleep 60")
    pid = runtime.launch(container)
    pidfd = os.pidfd_open(pid)
    os.kill(_minder(runtime, container), signal.SIGKILL)
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    state = runtime.state(container)
    assert (state.status, state.code) == ("exited", LOST_CODE)
    assert "minder died" in state.error
    assert runtime.wait(container) == LOST_CODE
    runtime.launch(container)  # and it can be started again
    assert runtime.state(container).running


def test_a_container_outlives_its_starter(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("sleep", "60")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            runtime.launch(container)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert runtime.state(container).running
    minder = _minder(runtime, container)
    assert os.getsid(minder) != os.getsid(0)
    groups = Path(f"/proc/{minder}/cgroup").read_text().splitlines()
    assert all(line.endswith("/netlib/minders") for line in groups)


def test_a_minder_holds_little(runtime: Runtime, box: Callable[..., Container]) -> None:
    living = box("sh", "-c", "echo ready; exec sleep 60")
    runtime.launch(living)
    _ready(runtime, living)
    minder = _minder(runtime, living)
    names = {os.readlink(f"/proc/{minder}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{minder}/fd")}
    folder, run_folder = runtime.folder(living), runtime.run_folder(living)
    allowed = {"/dev/null", "pipe", "socket", "anon_inode", str(run_folder / "lock")}
    assert names - allowed == {str(folder / "container.log"), str(folder / "minder.log")}
    rollup = Path(f"/proc/{minder}/smaps_rollup").read_text()
    proportional = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
    assert proportional < 9_000  # KiB; 4,400 measured beside others


def test_a_reused_pid_is_never_signalled(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("true")
    runtime.launch(container)
    runtime.wait(container, 10)
    other = subprocess.Popen(["sleep", "60"])
    try:
        path = runtime.folder(container) / "pid.json"
        body = json.loads(path.read_text()) | {"pid": other.pid, "minder": os.getpid()}
        path.write_text(json.dumps(body))
        (runtime.folder(container) / "exit.json").unlink()
        assert not runtime.state(container).running
        with pytest.raises(Conflict):
            runtime.kill(container)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_leftovers_are_found_and_swept(runtime: Runtime, box: Callable[..., Container]) -> None:
    container = box("true")
    runtime.launch(container)
    runtime.wait(container, 10)
    assert runtime.leftovers(set()) == [container.container_id]
    assert runtime.leftovers({container.container_id}) == []
    runtime.sweep(container.container_id)
    runtime.sweep(container.container_id)
    assert runtime.leftovers(set()) == []


def test_control_groups_go_with_the_container(runtime: Runtime, living: Container) -> None:
    pid = runtime.state(living).pid
    lines = [line.split(":") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    mine = f"/netlib/{living.container_id}"
    assert all(path == mine for _, _, path in lines)
    runtime.stop(living, 0)
    assert list(Path("/sys/fs/cgroup").glob(f"**/{living.container_id}")) == []


def test_a_minder_has_one_thread(runtime: Runtime, living: Container) -> None:
    """The kernel kills the container when the thread that made it ends, not the process."""
    assert len(os.listdir(f"/proc/{_minder(runtime, living)}/task")) == 1
