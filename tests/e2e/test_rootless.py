"""An ordinary user without sudo: root in a user namespace of their own, in which nothing of the machine is theirs to write."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlib import config as config_module
from netlib.config import Config

ROOT = Path(__file__).parents[2]
USER = 12345  # nobody's
PYTHON = (ROOT, Path(sys.prefix), Path(sys.base_prefix))

# What is below a folder that only root may enter (a checkout or an interpreter in /root) is shown at its place all the same.
_OPEN = """
set -e
for closed in $CLOSED; do
    mkdir -p "$STASH$closed"
    mount --bind "$closed" "$STASH$closed"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
done
for path in $HIDDEN; do
    mkdir -p "$path"
    mount --bind "$STASH$path" "$path"
done
cd /
exec setpriv --reuid "$OWN" --regid "$OWN" --clear-groups unshare --user --map-root-user --net --mount sh -ec "$SCRIPT"
"""

_SCRIPT = """
netlib() { "$PYTHON" -m netlib "$@"; }
ip link set lo up
netlib info | grep Dir:
netlib network create shop > /dev/null
netlib run -d --name web --network shop -p 8080:80 busybox httpd -f -p 80 -h /etc > /dev/null
curl --silent --retry 20 --retry-connrefused --retry-delay 0 --output /dev/null --write-out '%{http_code}\\n' http://127.0.0.1:8080/hostname
netlib run --rm --network shop ping -q -c1 -W2 web | grep received
netlib exec web id -u
netlib check web
netlib check shop
netlib inspect -f '{{.NetworkSettings.SandboxKey}}' web
netlib system reset -f
ip -brief link
nft list ruleset
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder that its owner can reach."""
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, USER, USER)
    yield folder
    shutil.rmtree(folder)


def _as_user(home: Path, script: str, **environment: str) -> str:
    """The output of a shell script, run as that user in new user, net and mount namespaces."""
    closed = {folder for path in PYTHON for folder in [*path.parents][-2:-3:-1] if not folder.stat().st_mode & 1}
    hidden = {path for path in PYTHON if closed & {*path.parents}}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _OPEN],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHON": sys.executable,
            "OWN": str(USER),
            "CLOSED": " ".join(map(str, closed)),
            "HIDDEN": " ".join(map(str, hidden)),
            "STASH": tempfile.gettempdir() + "/stash",
            "SCRIPT": script,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.mark.needs_cgroups  # for only root can become an ordinary user
def test_an_ordinary_user_needs_nothing_but_a_user_namespace(home: Path) -> None:
    """And the next one, which is another host, finds nothing in its way."""
    folders = []
    for _ in range(2):
        lines = _as_user(home, _SCRIPT).splitlines()
        state, run = (Path(line.split()[1]) for line in lines[:2])
        assert state.parent == home / ".local/share/netlib"
        assert run == state / "run"
        assert lines[2].startswith("200")
        assert "1 received" in lines[3]
        assert lines[4:6] == ["0", f"{run}/netns/web"]
        assert lines[6].split()[0] == "lo"
        assert len(lines) == 7
        folders.append(state)
    assert folders[0] != folders[1]


@pytest.mark.needs_cgroups
def test_a_user_has_containers_beside_those_of_root(home: Path, config: Config) -> None:
    """Root's minders have a control group by then, in which the user's have no place."""
    netlib = [sys.executable, "-m", "netlib", f"--state-dir={config.state_dir}", f"--run-dir={config.run_dir}"]
    subprocess.run([*netlib, "run", "-d", "--network", "none", "sleep", "60"], check=True, capture_output=True)
    try:
        script = '"$PYTHON" -m netlib run --rm --network none echo here; "$PYTHON" -m netlib system reset -f'
        assert _as_user(home, script) == "here\n"
    finally:
        subprocess.run([*netlib, "system", "reset", "-f"], check=True, capture_output=True)


@pytest.mark.needs_cgroups
def test_a_lost_store_is_no_dead_end(home: Path) -> None:
    script = """
    netlib() { "$PYTHON" -m netlib "$@"; }
    netlib network create shop > /dev/null
    netlib run -d --name web --network shop sleep 60 > /dev/null
    state=$(netlib info --format '{{.StateDir}}')
    rm "$state"/netlib.db*
    netlib system reset --lost -f | grep 'namespace web'
    ip -brief link
    ls "$state/run/netns"
    """
    removed, link = _as_user(home, script).splitlines()
    assert removed.startswith("removed: network namespace")
    assert link.split()[0] == "lo"


@pytest.mark.needs_cgroups
def test_the_users_own_folders_are_the_xdg_ones(home: Path) -> None:
    for name in ("data", "run"):
        (home / name).mkdir()
        os.chown(home / name, USER, USER)
    script = '"$PYTHON" -m netlib info | grep Dir:'
    shown = _as_user(home, script, XDG_DATA_HOME=f"{home}/data", XDG_RUNTIME_DIR=f"{home}/run").splitlines()
    state, run = (Path(line.split()[1]) for line in shown)
    assert (state.parent, run.parent) == (home / "data/netlib", home / "run/netlib")
    assert state.name == run.name


@pytest.mark.needs_cgroups
def test_the_machines_own_root_keeps_the_machines_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they cannot be written: records must not be looked for elsewhere because a disk went read-only."""
    for name in ("NETLIB_STATE_DIR", "NETLIB_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config_module, "is_ours", lambda path: False)
    assert Config.from_environment() == Config("/var/lib/netlib", "/run/netlib")
