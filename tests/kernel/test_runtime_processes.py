"""The life of a container's processes: exit codes, streams, terminals, further commands, crashes."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import tty
from pathlib import Path

import pytest

from netlib.core.traces import container_folders
from netlib.errors import CommandNotRun, Conflict, DeadlineExceeded, NotFound
from netlib.runtime import attach, cgroups
from netlib.runtime.container import LOST_CODE, Runtime
from netlib.runtime.spec import Container, ExecSpec, Volume
from tests.kernel.runtime_world import World, execute

pytestmark = pytest.mark.needs_cgroups


@pytest.fixture
def runtime(world: World) -> Runtime:
    return world.runtime


@pytest.fixture
def living(world: World) -> Container:
    return world.living("sleep", "60", environment={"A": "1"}, workdir="/srv")


# --- exit codes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$; exit 4", 4), ("sleep 9 & kill -9 $!; wait $!", 137)]
)
def test_exit_code(world: World, command: str, code: int) -> None:
    assert world.run("sh", "-c", command)[0] == code


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("nosuch", 127, "not found in the container's PATH"),
        ("/no/such", 127, "no such file"),
        ("/etc/passwd", 126, "ermission denied"),
        ("/srv", 126, "is a directory"),
    ],
)
def test_command_that_cannot_be_started(world: World, runtime: Runtime, command: str, code: int, sentence: str) -> None:
    container = world.box(command)
    with pytest.raises(CommandNotRun, match=sentence) as caught:
        runtime.launch(container)
    assert caught.value.exit_code == code
    assert runtime.state(container).status == "created"


def test_killed_from_outside(world: World, runtime: Runtime) -> None:
    container = world.box("sleep", "60")
    runtime.launch(container)
    runtime.kill(container, signal.SIGKILL)
    assert runtime.wait(container, 10) == 137
    state = runtime.state(container)
    assert (state.status, state.code) == ("exited", 137)
    assert state.finished >= state.started > 0


def test_stop_asks_first_and_kills_later(world: World, runtime: Runtime) -> None:
    polite = world.box("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    runtime.launch(polite)
    world.ready(polite)
    assert runtime.stop(polite, 10) == 7
    stubborn = world.box("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    runtime.launch(stubborn)
    world.ready(stubborn)
    assert runtime.stop(stubborn, 0.3) == 137
    assert runtime.stop(stubborn) == 137  # it does not run any more: nothing to do


def test_stop_waits_for_the_minder_of_one_that_ended_just_now(world: World, runtime: Runtime, living: Container) -> None:
    """Between the end of process 1 and exit.json there is a moment, long where much output is still to be kept."""
    minder = world.minder(living)
    os.kill(minder, signal.SIGSTOP)
    runtime.kill(living)
    waiting = threading.Timer(0.3, os.kill, (minder, signal.SIGCONT))
    waiting.start()
    assert runtime.stop(living, 10, signal.SIGKILL) == 137
    waiting.join()
    assert runtime.state(living).status == "exited"


def test_wait_has_a_deadline(world: World, runtime: Runtime) -> None:
    container = world.box("sleep", "60")
    runtime.launch(container)
    with pytest.raises(DeadlineExceeded):
        runtime.wait(container, 0.05)


def test_without_its_socket_a_container_is_waited_for_and_stopped_all_the_same(world: World, runtime: Runtime) -> None:
    """The run folder was deleted; its minder goes on."""
    container = world.living("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    world.ready(container)
    shutil.rmtree(runtime.run_folder(container))
    with pytest.raises(DeadlineExceeded):
        runtime.wait(container, 0.05)
    assert runtime.stop(container, 0.2) == 137
    assert [entry.log for entry in runtime.logs(container, follows=True)] == ["ready\n"]
    assert not runtime.state(container).running


def test_a_running_container_is_not_started_again_nor_removed(world: World, runtime: Runtime) -> None:
    container = world.box("sleep", "60")
    runtime.launch(container)
    with pytest.raises(Conflict, match="running"):
        runtime.launch(container)
    with pytest.raises(Conflict, match="running"):
        runtime.remove(container)
    assert runtime.state(container).running


# --- input, output, terminals -------------------------------------------------------------------------------------------


def test_streams_are_told_apart(world: World, runtime: Runtime) -> None:
    container = world.box("sh", "-c", "echo out; echo err >&2; printf tail")
    assert world.foreground(container) == (0, "out\ntail", "err\n")
    assert sorted((entry.stream, entry.log) for entry in runtime.logs(container)) == [
        ("stderr", "err\n"),
        ("stdout", "out\n"),
        ("stdout", "tail"),
    ]
    assert [entry.log for entry in runtime.logs(container, tail=1, follows=True)] == ["tail"]


def test_input_passes_whole(world: World) -> None:
    given = b"".join(b"%d\n" % number for number in range(8000))  # more than a pipe holds would block the test's own writer
    code, out, _ = world.run("cat", given=given)
    assert (code, out) == (0, given.decode())


def test_much_output_and_input_at_once_do_not_block(world: World, runtime: Runtime, tmp_path: Path) -> None:
    container = world.box("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; cat", stdin=True)
    (tmp_path / "in").write_bytes(b"y" * 2_000_000)
    mine, theirs = attach.pair()
    with mine, theirs, open(tmp_path / "in", "rb") as given, open(tmp_path / "out", "wb") as out:
        runtime.launch(container, client=theirs)
        theirs.close()
        code = attach.relay(mine, stdin=given.fileno(), stdout=out.fileno(), stderr=2, tty=False, forward=lambda _: None)
    assert code == 0
    assert (tmp_path / "out").read_bytes() == b"x" * 3_000_000 + b"y" * 2_000_000


def test_without_stdin_there_is_none(world: World) -> None:
    assert world.run("cat") == (0, "", "")


def test_terminal(world: World) -> None:
    code, out, _ = world.run(
        "sh", "-c", "tty; stty size; test -t 0 && test -t 1 && test -t 2 && ls -l /dev/console | cut -c1", tty=True
    )
    assert (code, out) == (0, "/dev/pts/0\r\n33 99\r\nc\r\n")


def test_typing_into_a_terminal(world: World, runtime: Runtime) -> None:
    script = "trap 'exit 130' INT; stty -echo; echo ready; read line; echo got $line; while :; do sleep 0.05; done"
    container = world.box("sh", "-c", script, tty=True, stdin=True)
    mine, theirs = attach.pair()
    master, slave = pty.openpty()
    tty.setraw(slave)
    read, write = os.pipe()
    with mine, theirs:
        runtime.launch(container, client=theirs)
        theirs.close()
        world.ready(container)
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
        os.write(master, b"\x03")  # control-C reaches the container's terminal, which sends SIGINT
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    os.close(master)
    os.close(slave)


def test_what_its_starter_ignores_a_container_does_not(world: World) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a command in the background of a script
    try:
        code, answer, _ = world.run("grep", "^SigIgn", "/proc/self/status")
        assert code == 0
        assert int(answer.split()[1], 16) & 0x7FFFFFFF == 0  # above are the C library's own
    finally:
        signal.signal(signal.SIGINT, before)


def test_attaching_later_gives_the_output_from_then_on(world: World, runtime: Runtime) -> None:
    container = world.box("sh", "-c", "read line; echo $line", stdin=True)
    runtime.launch(container)
    with attach.connect(runtime.socket_path(container), output=True) as connection:
        connection.send(b"ihello\n")
        assert connection.recv(100) == b"ohello\n"
        assert attach.wait(connection, 10) == 0
    with pytest.raises(NotFound):
        attach.connect(runtime.socket_path(container), output=True)


def test_logs_can_be_followed(world: World, runtime: Runtime) -> None:
    container = world.box("sh", "-c", "echo one; read line; echo two", stdin=True)
    runtime.launch(container)
    seen = []
    for entry in runtime.logs(container, follows=True):
        seen.append(entry.log)
        if entry.log == "one\n":
            with attach.connect(runtime.socket_path(container), output=False) as connection:
                connection.send(b"i\n")
                attach.wait(connection, 10)
    assert seen == ["one\n", "two\n"]


def test_the_foreground_passes_signals_on(world: World, runtime: Runtime) -> None:
    container = world.box("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
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


# --- exec ---------------------------------------------------------------------------------------------------------------


@pytest.mark.vm
def test_exec_joins_everything(world: World, runtime: Runtime, living: Container) -> None:
    script = """for kind in uts ipc pid mnt cgroup net; do readlink /proc/self/ns/$kind; done
        cat /proc/self/cgroup; grep CapEff /proc/self/status"""
    code, out, err = world.exec(living, "sh", "-c", script)
    lines = out.splitlines()
    pid = runtime.state(living).pid
    assert (code, err) == (0, "")
    assert lines[:6] == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("uts", "ipc", "pid", "mnt", "cgroup", "net")]
    assert all(line.endswith(":/") for line in lines[6:-1] if "name=" in line or line.startswith("0::"))
    assert lines[-1] == "CapEff:\t00000000a80425fb"


def test_exec_options(world: World, runtime: Runtime, living: Container) -> None:
    assert world.exec(living, "sh", "-c", "pwd; echo $A $B", environment={"B": "2"})[1] == "/srv\n1 2\n"
    assert world.exec(living, "sh", "-c", "pwd; id -u", workdir="/tmp", user="nobody")[1] == "/tmp\n65534\n"
    assert world.exec(living, "cat", given=b"passed\n") == (0, "passed\n", "")
    assert world.exec(living, "cat") == (0, "", "")
    assert world.exec(living, "sh", "-c", "tty; echo err >&2", tty=True)[:2] == (0, "/dev/pts/0\r\nerr\r\n")


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_exec_exit_code(world: World, runtime: Runtime, living: Container, command: str, code: int) -> None:
    assert world.exec(living, "sh", "-c", command)[0] == code


@pytest.mark.parametrize(("command", "code"), [("nosuch", 127), ("/etc/passwd", 126)])
def test_exec_of_what_cannot_be_started(world: World, runtime: Runtime, living: Container, command: str, code: int) -> None:
    found, _, err = world.exec(living, command)
    assert found == code
    assert err.startswith("netlib: ")
    assert len(err.splitlines()) == 1


def test_exec_imports_nothing_from_the_container(world: World, runtime: Runtime, tmp_path: Path) -> None:
    """Whoever fills the root must not get to run code with the host's rights."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("signal", "enum", "termios", "encodings/idna"):
        (trap / name).parent.mkdir(exist_ok=True)
        (trap / f"{name}.py").write_text("open('/srv/trapped', 'w')\n")
    library = str(Path(os.__file__).parent)
    container = world.box("sh", "-c", "echo started; test ! -e /srv/trapped", tty=True, volumes=(Volume(str(trap), library),))
    assert world.foreground(container)[0] == 0
    container = world.box("sleep", "60", volumes=(Volume(str(trap), library),))
    runtime.launch(container)
    assert world.exec(container, "sh", "-c", "test ! -e /srv/trapped", tty=True)[0] == 0


def test_exec_shows_the_container_nothing_of_its_caller(world: World, runtime: Runtime, tmp_path: Path) -> None:
    """Neither what it has open, nor, while it is no more than the container's own root, what the caller had open."""
    spy = """if True:
        import os
        print("ready", flush=True)
        while True:
            for name in os.listdir("/proc"):
                if name.isdigit() and int(name) > 1:
                    try:
                        if os.readlink(f"/proc/{name}/exe") == os.readlink("/proc/self/exe"):
                            found = os.listdir(f"/proc/{name}/fd")
                            print(*(os.readlink(f"/proc/{name}/fd/{fd}") for fd in found), flush=True)
                    except OSError:
                        pass
    """
    spying = world.living(sys.executable, "-IS", "-c", spy)
    world.ready(spying)
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.set_inheritable(folder, True)
        for _ in range(20):
            assert world.exec(spying, "true")[0] == 0
    finally:
        os.close(folder)
    assert [entry.log for entry in runtime.logs(spying)] == ["ready\n"]


def test_exec_whose_reader_has_gone_ends_as_by_its_signal(runtime: Runtime, living: Container) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(os.devnull, "rb") as nothing:
        code = execute(runtime, living, ExecSpec(command=("echo", "heard")), (nothing.fileno(), writer, 2))
    os.close(writer)
    assert code == 128 + signal.SIGPIPE


def test_exec_detached_goes_on_by_itself(world: World, runtime: Runtime, living: Container) -> None:
    assert world.exec(living, "sh", "-c", "mkfifo /tmp/f; echo there > /tmp/f", detach=True) == (0, "", "")
    assert world.exec(living, "sh", "-c", "while [ ! -p /tmp/f ]; do :; done; cat /tmp/f")[1] == "there\n"


def test_exec_in_an_ended_container_is_refused(world: World, runtime: Runtime, living: Container) -> None:
    runtime.stop(living, 0)
    with pytest.raises(Conflict, match="not running"):
        execute(runtime, living, ExecSpec(command=("true",)))


def test_what_was_executed_ends_with_the_container(world: World, runtime: Runtime, living: Container) -> None:
    with runtime.exec_command(living, ExecSpec(command=("sh", "-c", "echo ready; exec sleep 60"))) as (python, arguments):
        program = f"/proc/self/fd/{python}"
        helper = subprocess.Popen(arguments, executable=program, close_fds=False, stdout=subprocess.PIPE)
    with helper:
        assert helper.stdout is not None
        assert helper.stdout.readline() == b"ready\n"
        runtime.stop(living, 0)
        assert helper.wait(10) == 137


# --- crashes ------------------------------------------------------------------------------------------------------------


def test_a_container_dies_with_its_minder(world: World, runtime: Runtime) -> None:
    container = world.box("sh", "-c", "sleep 60 & sleep 60")
    pid = runtime.launch(container)
    pidfd = os.pidfd_open(pid)
    os.kill(world.minder(container), signal.SIGKILL)
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    state = runtime.state(container)
    assert (state.status, state.code) == ("exited", LOST_CODE)
    assert "minder died" in state.error
    assert runtime.wait(container) == LOST_CODE
    runtime.launch(container)  # and it can be started again
    assert runtime.state(container).running


@pytest.mark.vm
def test_a_container_outlives_its_starter(world: World, runtime: Runtime) -> None:
    container = world.box("sleep", "60")
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
    minder = world.minder(container)
    assert os.getsid(minder) != os.getsid(0)
    groups = Path(f"/proc/{minder}/cgroup").read_text().splitlines()
    assert all(line.endswith("/netlib/minders") for line in groups)


def test_a_minder_holds_little(world: World, runtime: Runtime) -> None:
    living = world.box("sh", "-c", "echo ready; exec sleep 60")
    mine, theirs = attach.pair()
    with mine, theirs:
        runtime.launch(living, client=theirs)
        assert mine.recv(100) == b"oready\n"  # from here on it is in its loop
        _check_minder(runtime, living, world.minder(living))


def _check_minder(runtime: Runtime, living: Container, minder: int) -> None:
    names = {os.readlink(f"/proc/{minder}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{minder}/fd")}
    folder, run_folder = runtime.folder(living), runtime.run_folder(living)
    allowed = {"/dev/null", "pipe", "socket", "anon_inode", str(run_folder / "lock")}
    assert names - allowed == {str(folder / "container.log"), str(folder / "minder.log")}
    rollup = Path(f"/proc/{minder}/smaps_rollup").read_text()
    proportional = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
    assert proportional < 9_000  # KiB; 4,400 measured beside others


def test_a_reused_pid_is_never_signalled(world: World, runtime: Runtime) -> None:
    container = world.box("true")
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


def test_leftovers_are_found_and_swept(world: World, runtime: Runtime) -> None:
    container = world.box("true")
    runtime.launch(container)
    runtime.wait(container, 10)
    assert container_folders(runtime.config) == {container.container_id}
    runtime.sweep(container.container_id)
    runtime.sweep(container.container_id)
    assert container_folders(runtime.config) == set()


@pytest.mark.vm
def test_control_groups_go_with_the_container(world: World, runtime: Runtime, living: Container) -> None:
    pid = runtime.state(living).pid
    lines = [line.split(":") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    mine = f"/netlib/{living.container_id}"
    assert all(path == mine for _, _, path in lines)
    runtime.stop(living, 0)
    groups = [f"{path}/{cgroups.PARENT}/{living.container_id}" for path in cgroups.own_hierarchies().values()]
    assert [group for group in groups if os.path.exists(group)] == []


def test_a_minder_has_one_thread(world: World, runtime: Runtime, living: Container) -> None:
    """The kernel kills the container when the thread that made it ends, not the process."""
    assert len(os.listdir(f"/proc/{world.minder(living)}/task")) == 1
