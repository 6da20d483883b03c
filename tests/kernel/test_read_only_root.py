"""A host on which nothing but the state and the run folder can be written."""

import os
import subprocess
import sys
from pathlib import Path

from netlib.config import Config

ROOT = Path(__file__).parents[2]
_READ_ONLY = """
for folder in / /tmp /var/tmp; do mountpoint -q $folder && mount -o remount,bind,ro $folder; done
! touch /tmp/mine /var/tmp/mine 2>/dev/null || exit 9
exec "$@"
"""
_LIFE = """
import sys
from pathlib import Path
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched

with Controller(Config(state_dir=Path(sys.argv[1]), run_dir=Path(sys.argv[2])), watcher=Unwatched()) as controller:
    controller.create_network("web")
    names = [f"box{number}" for number in range(8)]
    for name in names:
        controller.create_sandbox(name)
        controller.connect("web", name)
    controller.remove_sandboxes(names)
    controller.remove_network("web")
    controller.reset()
"""


def test_a_life_without_a_place_for_temporary_files(config: Config) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"} | {"PYTHONPATH": str(ROOT)}
    folders = (str(config.state_dir), str(config.run_dir))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _READ_ONLY, "-", sys.executable, "-B", "-c", _LIFE, *folders],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
