"""Root inside a container attacks the host by all that it can name: its executable, its descriptors, its folder, its keys.

What is attacked is guarded first: the interpreter's folder by an overlay, the device nodes by others that lie on them. Where a
guard does not hold, the test refuses to run.
"""

import ctypes
import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.wire.client import start_daemon
from tests.cni.calling import run as output

pytestmark = [pytest.mark.needs_cgroups, pytest.mark.usefixtures("attacked")]

Netlib = Callable[..., str]
SECONDS = 30
PYTHON = Path(sys.executable).resolve()
DEVICES = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom", "tty")]

# What is tried on every path that it is called with; in the end it says how many were tried, and which of them worked.
ATTACK = """if True:
    import fcntl, os, sys
    def attempts(path):
        yield "chmod", lambda: os.chmod(path, 0o4777)
        yield "chown", lambda: os.chown(path, 12345, 12345)
        yield "utime", lambda: os.utime(path, (1, 1))
        yield "xattr", lambda: os.setxattr(path, "user.spoilt", b"1")
        yield "truncate", lambda: os.truncate(path, 1)
        yield "append", lambda: os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b"spoilt")
        yield "flags", lambda: fcntl.ioctl(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 0x40086602, b"\\x40" + bytes(7))
    paths = sys.argv[1:] or ["/proc/self/exe"]
    tried, worked = 0, []
    for path in paths:
        for name, attempt in attempts(path):
            tried += 1
            try:
                attempt()
            except OSError:
                continue
            worked.append(f"{name} {path}")
    print("tried", tried, *worked)
"""
READ_ONLY = "import os; print(os.statvfs('/proc/self/exe').f_flag & (os.ST_RDONLY | os.ST_NOSUID))"


@pytest.fixture
def netlib(config: Config) -> Iterator[Netlib]:
    """Run ``netlib`` and return what it says; afterwards all that it made is removed."""
    folders = ["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir)]

    def run(*words: str, code: int = 0, **wanted: Any) -> str:
        command = [sys.executable, "-m", "netlib.cli.main", *folders, *words]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, **wanted
        )
        assert done.returncode == code, f"netlib {' '.join(words)}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    yield run
    run("system", "reset", "-f")


def _facts(path: Path) -> tuple[object, ...]:
    """All of a file that could be changed; the time of its last change tells of what is not listed here."""
    found = path.lstat()
    content = blake2b(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else ""
    return (found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, found.st_ctime_ns, content)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[list[Path]]:
    """The interpreter and the host's device nodes, each replaced for this test by one that may be spoilt."""
    folder, layers, nodes = PYTHON.parent, tmp_path / "layers", tmp_path / "nodes"
    original = os.stat(PYTHON).st_dev
    for name in ("upper", "work"):
        (layers / name).mkdir(parents=True)
    options = f"lowerdir={folder},upperdir={layers}/upper,workdir={layers}/work"
    output("mount", "-t", "overlay", "overlay", "-o", options, str(folder))
    mounted = [str(folder)]
    try:
        nodes.mkdir()
        for path in DEVICES:
            own = nodes / path.name
            os.mknod(own, stat.S_IFCHR, path.stat().st_rdev)
            own.chmod(0o666)
            output("mount", "--bind", str(own), str(path))
            mounted.append(str(path))
        kinds = dict(line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines())
        if kinds.get(str(folder)) != "overlay" or os.stat(PYTHON).st_dev == original:
            pytest.fail(f"{folder} is not guarded by an overlay: the attack would be on the machine's own interpreter")
        if any(path.stat().st_dev != nodes.stat().st_dev for path in DEVICES):
            pytest.fail("the device nodes are not guarded: the attack would be on the machine's own")
        with open(PYTHON, "r+b"):  # copied up, so that the guard itself changes nothing later on
            pass
        yield [PYTHON, *DEVICES]
    finally:
        for path_of_mount in reversed(mounted):
            output("umount", "--lazy", path_of_mount)


@pytest.fixture
def attacked(guarded: list[Path]) -> Iterator[None]:
    """Compare everything that is guarded after the attack with what it was before."""
    before = [_facts(path) for path in guarded]
    yield
    assert [_facts(path) for path in guarded] == before


def _through_terminal(netlib: Netlib, *words: str) -> str:
    """Run netlib with a terminal as its standard input."""
    ours, theirs = pty.openpty()
    try:
        return netlib(*words, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def _living(netlib: Netlib, *options: str) -> str:
    netlib("run", "-d", "--name", "box", "--network", "none", *options, "sleep", "600")
    return "box"


EXE = ("/proc/self/exe", "-IS", "-c")


# --- the executable of the process that enters ----------------------------------------------------------------------------


def _ways(netlib: Netlib, command: tuple[str, ...], options: tuple[str, ...] = ()) -> dict[str, str]:
    """What *command* says by every way into a container."""
    run = ("run", "--rm", "--network", "none", *options)
    said = {
        "run": netlib(*run, *command),
        "run -i": netlib(*run, "-i", *command, input=""),
        "run -it": _through_terminal(netlib, *run, "-it", *command),
        "run -u": netlib(*run, "-u", "1000", *command),
    }
    box = _living(netlib, *options)
    said["join"] = netlib("run", "--rm", "--network", f"container:{box}", *options, *command)
    said["exec"] = netlib("exec", box, *command)
    said["exec -i"] = netlib("exec", "-i", box, *command, input="")
    said["exec -it"] = _through_terminal(netlib, "exec", "-it", box, *command)
    return said


def test_the_executable_of_who_enters(netlib: Netlib) -> None:
    for way, said in _ways(netlib, (*EXE, ATTACK)).items():
        assert said.split() == ["tried", "7"], f"{way}: {said}"


def test_the_executable_lies_on_a_read_only_mount_without_setuid(netlib: Netlib) -> None:
    """An interpreter that runs cannot be written to anyway; one that runs nowhere else could be."""
    for way, said in _ways(netlib, (*EXE, READ_ONLY)).items():
        assert said.split() == [str(os.ST_RDONLY | os.ST_NOSUID)], f"{way}: {said}"


def test_a_program_that_is_a_script_of_who_enters(netlib: Netlib, tmp_path: Path) -> None:
    """A hostile image's shell is one line: have the kernel run, as its interpreter, whoever executes it."""
    folder = tmp_path / "image"
    folder.mkdir(mode=0o755)
    script = folder / "sh"
    script.write_text(f"#!/proc/self/exe -IS\n{ATTACK}")
    script.chmod(0o755)
    for way, said in _ways(netlib, ("/trap/sh",), ("-v", f"{folder}:/trap:ro")).items():
        assert said.split() == ["tried", "7"], f"{way}: {said}"


def test_a_container_that_lies_in_wait_for_exec(netlib: Netlib) -> None:
    """It looks for the one that enters, in every process that appears, until its own command tells it to stop."""
    lurking = f"""if True:
        import os, sys
        print("ready", flush=True)
        while not os.path.exists("/tmp/stop"):
            for pid in (name for name in os.listdir("/proc") if name.isdigit() and name != "1"):
                for name in ("exe", "cwd", "root", "fd/0", "fd/3", "fd/4", "fd/5", "fd/6", "fd/7", "fd/8", "fd/9"):
                    sys.argv = ["", f"/proc/{{pid}}/{{name}}"]
                    try:
                        found = os.readlink(sys.argv[1])
                    except OSError:
                        continue
                    if name == "exe" or not found.startswith(("/", "pipe")):
                        exec({ATTACK!r})
        print("over", flush=True)
    """
    netlib("run", "-d", "--name", "box", "--network", "none", sys.executable, "-IS", "-c", lurking)
    for _ in range(10):
        netlib("exec", "box", "true")
        netlib("exec", "box", *EXE, "import os; os.listdir('/proc')")
    netlib("exec", "box", "touch", "/tmp/stop")
    assert netlib("wait", "box") == "0\n"
    said = netlib("logs", "box").split("\n")
    assert (said[0], said[-2]) == ("ready", "over")
    assert any(line.startswith("tried") for line in said)  # its own programs' files it may spoil


# --- its descriptors and its folder ---------------------------------------------------------------------------------------


def test_device_nodes_and_descriptors(netlib: Netlib) -> None:
    """The null device as standard input, /dev and what is open: all may be spoilt, for it is the container's own."""
    paths = [*map(str, DEVICES), "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "."]
    command = (*EXE, ATTACK, *paths)
    for way, said in _ways(netlib, command).items():
        assert f"tried {7 * len(paths)}" in said, f"{way}: {said}"
    netlib("exec", "-d", "box", *command)
    netlib("exec", "box", *command)


def test_no_descriptor_is_open_that_was_not_given(netlib: Netlib, tmp_path: Path) -> None:
    """Also where who runs netlib has some open that are inherited, and also before the command begins: a link to them."""
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    numbers = [os.dup(folder) for _ in range(12)]
    try:
        for fd in numbers:
            os.set_inheritable(fd, True)
        for way, said in _ways(netlib, ("sh", "-c", "ls /proc/$$/fd"), ()).items():
            assert set(said.split()) <= {"0", "1", "2", "10", "255"}, f"{way}: {said}"  # the last: a shell's own terminal
        for fd in range(3, max(numbers) + 1):
            wanted = {"pass_fds": numbers}
            folder_of = ("-w", f"/proc/self/fd/{fd}")
            assert "no folder in the container" in netlib("exec", *folder_of, "box", "true", code=126, **wanted)
            if fd in numbers[:2]:
                run = ("run", "--rm", "--network", "none", *folder_of, "true")
                assert "no folder in the container" in netlib(*run, code=125, **wanted)
    finally:
        for fd in (folder, *numbers):
            os.close(fd)


def test_a_working_folder_that_is_a_link_out(netlib: Netlib) -> None:
    box = _living(netlib)
    netlib("exec", box, "sh", "-c", "mkdir /srv/links; for n in $(seq 3 20); do ln -s /proc/self/fd/$n /srv/links/$n; done")
    for number in range(3, 21):
        assert "no folder in the container" in netlib("exec", "-w", f"/srv/links/{number}", box, "true", code=126)
    assert netlib("exec", "-w", "/proc/self/root", box, "pwd") == "/\n"


# --- a plugin that works in its network namespace -------------------------------------------------------------------------


@pytest.mark.parametrize("is_served", [False, True], ids=["in the plugin's process", "by netlibd"])
def test_a_container_sees_nothing_of_a_cni_plugin(netlib: Netlib, config: Config, tmp_path: Path, is_served: bool) -> None:
    """A plugin enters the network namespace alone: no process of the container can name it, its descriptors or its program."""
    plugins = tmp_path / "plugins"
    netlib("cni", "install", str(plugins))
    if is_served:
        start_daemon(config)
    watching = """if True:
        import os, sys
        seen = set()
        print("ready", flush=True)
        os.set_blocking(0, False)
        while True:
            seen |= {name for name in os.listdir("/proc") if name.isdigit()}
            try:
                if not os.read(0, 1):
                    break
            except BlockingIOError:
                pass
        print(*seen)
    """
    apart = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-IS", "-c", watching]
    with subprocess.Popen(apart, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout is not None
        assert container.stdin is not None
        assert container.stdout.readline() == "ready\n"
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        ipam = {"type": "host-local", "subnet": "10.5.0.0/24", "dataDir": str(tmp_path / "leases")}
        network = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": ipam})
        environ = {
            **os.environ,
            "NETLIB_STATE_DIR": str(config.state_dir),
            "NETLIB_RUN_DIR": str(config.run_dir),
            "CNI_PATH": str(plugins),
            "CNI_NETNS": f"/proc/{children[0]}/ns/net",
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
        }

        def call(command: str, previous: str = "") -> str:
            given = network[:-1] + (f', "prevResult": {previous}}}' if previous else "}")
            plugin, variables = [plugins / "bridge"], {**environ, "CNI_COMMAND": command}
            return subprocess.run(plugin, env=variables, input=given, stdout=subprocess.PIPE, text=True, check=True).stdout

        call("CHECK", call("ADD"))
        call("DEL")
        container.stdin.close()
        assert container.stdout.read() == "1\n"


# --- its keys -------------------------------------------------------------------------------------------------------------

_KEYCTL = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
_KEYS = f"""if True:
    import ctypes
    libc = ctypes.CDLL(None)
    serial = libc.syscall({_KEYCTL}, 0, -3, 1)
    found = libc.syscall({_KEYCTL}, 10, serial, b"user", b"netlib-secret", 0)
    print(serial, found)
"""


def test_the_callers_keys_are_not_found_inside(netlib: Netlib, config: Config) -> None:
    """Each container and each exec has a session keyring of its own; the caller's holds a secret."""

    def with_secret() -> None:
        libc = ctypes.CDLL(None)
        libc.syscall(_KEYCTL, 1, None)
        libc.syscall({"x86_64": 248, "aarch64": 217}[os.uname().machine], b"user", b"netlib-secret", b"x", 1, -3)

    command = (sys.executable, "-IS", "-c", _KEYS)
    outside = subprocess.run(command, preexec_fn=with_secret, capture_output=True, text=True, check=True).stdout.split()
    assert int(outside[1]) > 0  # the secret is found where it is
    run = ("run", "--rm", "--network", "none", *command)
    _living(netlib)
    ways = [
        netlib(*run, preexec_fn=with_secret),
        netlib(*run, preexec_fn=with_secret),
        netlib("exec", "box", *command, preexec_fn=with_secret),
        netlib("exec", "box", *command, preexec_fn=with_secret),
    ]
    serials, found = zip(*(said.split() for said in ways), strict=True)
    assert set(found) == {"-1"}
    assert len({outside[0], *serials}) == len(ways) + 1
