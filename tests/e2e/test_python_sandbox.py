"""A sandbox that a Python program made, as the command line sees it: shown, named in errors, never taken for a container."""

import json
from collections.abc import Iterator

import pytest

from netlib.cli.main import main
from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import AlreadyExists, ConfigError, Conflict, NotFound
from netlib.verbs.perform import perform

WHOSE = "sandbox 'pysb' of a Python program (`Controller.remove_sandbox`)"


@pytest.fixture
def controller(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    monkeypatch.setenv("NETLIB_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("NETLIB_RUN_DIR", str(config.run_dir))
    with Controller(config, watcher=Unwatched()) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24"])
        controller.create_sandbox("pysb", hostname="front")
        controller.connect("web", "pysb")
        yield controller
        controller.reset()


@pytest.mark.parametrize(
    "line", ["rm pysb", "rm -f pysb", "rm -f pysb nosuch", "run --name pysb true", "stop pysb", "logs pysb", "port pysb"]
)
def test_it_is_no_container_and_the_error_says_whose_it_is(
    line: str, controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == (125 if line.startswith("run") else 1)
    shown = capsys.readouterr()
    assert WHOSE in shown.err
    assert "pysb" not in shown.out
    assert [sandbox.name for sandbox in controller.sandboxes()] == ["pysb"]


def test_it_is_inspected_joined_and_left_by_its_name(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["inspect", "pysb"], ["inspect", "--type", "sandbox", "pysb"]):
        assert main(words) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert (shown["Name"], shown["Hostname"], shown["OwnsNetns"]) == ("pysb", "front", True)
        assert shown["NetworkSettings"]["Networks"]["web"]["IPAddress"] == "10.1.0.2"
    assert main(["network", "disconnect", "web", "pysb"]) == 0
    assert main(["network", "connect", "web", "pysb"]) == 0
    assert main(["network", "connect", "web", "nosuch"]) == 1
    assert "container 'nosuch' not found" in capsys.readouterr().err
    assert main(["inspect", "nosuch"]) == 1
    assert "no container or network 'nosuch'" in capsys.readouterr().err


def test_python_speaks_of_sandboxes(controller: Controller) -> None:
    with pytest.raises(NotFound, match=r"^sandbox 'nosuch' not found") as missing:
        controller.sandbox("nosuch")
    assert (missing.value.kind, missing.value.reference) == ("sandbox", "nosuch")
    with pytest.raises(AlreadyExists, match=r"in use by sandbox [0-9a-f]{12}") as taken:
        controller.create_sandbox("pysb")
    assert (taken.value.holder_kind, taken.value.holder, taken.value.name) == ("sandbox", "pysb", "pysb")
    with pytest.raises(ConfigError, match=r"^sandbox name 'a b'"):
        controller.create_sandbox("a b")
    with pytest.raises(Conflict, match="no container is removed") as kept:
        perform(controller, "container.rm", {"names": ["pysb"], "force": True})
    assert (kept.value.holder_kind, kept.value.holder) == ("sandbox", "pysb")
