"""Drivers of other packages: they are called as they are, and their defects are told as theirs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netlib import registry
from netlib.cli.main import main
from netlib.config import Config
from netlib.driverapi import Addressless, Driver, NoOptions, PublishesPorts, RoutesByLink
from netlib.errors import ConfigError, NotFound, PackageFailed, PackageMissing, TeardownError
from netlib.model import Network, Scope
from netlib.objects import failed_object
from netlib.packages import changed_package, guarded
from netlib.plan import KernelObject, Plan, ability
from netlib.store.objects import Unreadable, decode_object
from netlib.testing import IpamDriverSuite, NetworkDriverSuite
from netlib.wire.protocol import error_from_json, error_to_json
from tests.plugins_world import installed, write_tiny_net

LINE = Network(id="a" * 64, name="line", driver="tiny", created=0.0, packages={"driver": "tiny-net", "ipam": "far-net"})


class Routed:
    name = "routed"
    scope = Scope.LOCAL
    network_options = NoOptions

    def routes_by_link(self, network: Network) -> bool:
        return True

    def network_plan(self, network: Network) -> Plan:
        return Plan()

    def join_plan(self, network: Network) -> object:
        return [] if network.internal else None

    def validate_network(self, network: Network) -> None:
        raise ConfigError("too long") if network.internal else RuntimeError("boom")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_tiny_net(tmp_path / "packages")
    with installed(monkeypatch.syspath_prepend, tmp_path / "packages"):
        yield tmp_path / "packages"
    sys.modules.pop("tiny_net", None)


def test_a_guard_has_the_abilities_and_attributes_of_its_driver() -> None:
    guard: Any = guarded(Routed, "network driver", "routed", "acme-net")
    assert ability(guard, RoutesByLink) is not None
    assert not any(ability(guard, kind) for kind in (Addressless, PublishesPorts))
    assert (guard.name, guard.scope, guard.network_options) == ("routed", Scope.LOCAL, NoOptions)
    assert guard.routes_by_link(LINE)
    assert guard.network_plan(network=LINE) == Plan()


def test_what_a_driver_refuses_is_refused_and_what_it_fails_with_names_it() -> None:
    guard = guarded(Routed, "network driver", "routed", "acme-net")
    internal = Network(id="b" * 64, name="inner", driver="routed", created=0.0, internal=True)
    with pytest.raises(ConfigError, match="^too long$"):
        guard.validate_network(internal)
    with pytest.raises(PackageFailed) as refused:
        guard.validate_network(LINE)
    assert str(refused.value) == "network driver 'routed' of the package acme-net failed: RuntimeError: boom"
    assert (refused.value.reference, refused.value.package) == ("routed", "acme-net")
    assert isinstance(refused.value.__cause__, RuntimeError)
    assert str(error_from_json(error_to_json(refused.value))) == str(refused.value)
    with pytest.raises(PackageFailed, match="failed: TypeError: join_plan returned a list, not a Plan"):
        guard.join_plan(internal)


def test_a_driver_of_a_package_is_guarded_and_a_built_in_one_is_not(tiny: Path) -> None:
    assert registry.driver("tiny").network_plan(LINE) == Plan()
    assert hasattr(registry.driver("tiny"), "guarded_driver")
    assert not hasattr(registry.driver("bridge"), "guarded_driver")


@pytest.mark.parametrize("source", ["import nowhere_at_all", "def Tiny():\n    raise ImportError('nowhere_at_all')"])
def test_a_driver_that_cannot_be_loaded_names_its_package(tiny: Path, source: str) -> None:
    write_tiny_net(tiny, source)
    with pytest.raises(PackageFailed, match="^network driver 'tiny' of the package tiny-net .*Error.*nowhere_at_all"):
        registry.driver("tiny")
    stand_in: Driver = registry.driver_of(LINE)
    for unusable in (lambda: stand_in.network_plan(LINE), lambda: registry.usable_driver_of(LINE)):
        with pytest.raises(PackageFailed, match="of the package tiny-net"):
            unusable()


def test_a_package_that_changed_on_the_disk_is_noticed(tiny: Path) -> None:
    registry.driver("tiny")
    assert changed_package() == ""
    (tiny / "tiny_net-1.0.dist-info" / "RECORD").write_text("")  # as pip does that installs it again
    assert changed_package() == "tiny-net"


def test_a_missing_package_is_named_with_where_it_is_missing() -> None:
    for find in (registry.usable_driver_of, lambda network: registry.driver_of(network).network_plan(network)):
        with pytest.raises(PackageMissing) as refused:
            find(LINE)
        assert str(refused.value) == (
            "network 'line' needs the network driver 'tiny' of the package tiny-net, "
            f"which is not installed where netlib runs ({sys.prefix}); install it again"
        )
    far = Network(id="a" * 64, name="line", driver="bridge", ipam_driver="far", created=0.0, packages={"ipam": "far-net"})
    with pytest.raises(PackageMissing, match="network 'line' needs the IPAM driver 'far' of the package far-net, which is not"):
        registry.ipam_driver_of(far)
    with pytest.raises(NotFound, match="network driver 'tiny' not found where netlib runs .*; there are: bridge, "):
        registry.driver("tiny")


def test_an_object_of_a_missing_package_is_explained() -> None:
    item = decode_object(b'{"type":"tiny-net.queue","ifname":"eth0"}', "queue/host/eth0")
    assert isinstance(item, Unreadable)
    (line,) = item.commands()
    assert line.startswith("# queue/host/eth0: the package tiny-net is not installed where netlib runs")


def test_an_object_of_a_package_that_fails_names_it() -> None:
    class Mine(KernelObject, frozen=True, kw_only=True, tag="mine"):
        pass

    class Theirs(Mine, frozen=True, kw_only=True, tag="tiny-net.queue"):
        @property
        def key(self) -> str:  # type: ignore[override]
            return "queue/host/eth0"

    error = failed_object(Theirs(), RuntimeError("boom"))
    assert str(error) == "kernel object 'queue/host/eth0' of the package tiny-net failed: RuntimeError: boom"
    assert failed_object(Mine(), RuntimeError("boom")) is None


def test_a_teardown_says_what_is_removed() -> None:
    error = TeardownError([NotFound("queue/host/eth0 stays")], subject="network 'line'")
    assert str(error).startswith("network 'line' is removed except for")
    again = error_from_json(error_to_json(error))
    assert isinstance(again, TeardownError)
    assert (str(again), again.subject) == (str(error), "network 'line'")


def test_a_command_says_where_the_traceback_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*_: object, **__: object) -> object:
        with_cause = PackageFailed("network driver 'tiny' of the package tiny-net failed: RuntimeError: boom")
        raise with_cause from RuntimeError("boom")

    monkeypatch.setattr("netlib.cli.system.call", call)
    assert main(["--state-dir", str(config.state_dir), "--run-dir", str(config.run_dir), "info"]) == 1
    log = config.run_dir / "errors.log"
    assert f"failed: RuntimeError: boom; its details are in {log}" in capsys.readouterr().err
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("-h", 0), ("--nothing", 2)])
def test_the_test_host_says_how_it_is_used(word: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-m", "netlib.testing", word], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "python -m netlib.testing COMMAND [ARG ...]" in (done.stderr if code else done.stdout)


def test_a_suite_with_an_unknown_driver_says_so_in_one_sentence() -> None:
    class TestNothing(NetworkDriverSuite):
        driver = "no-such-driver"

    class TestNobody(IpamDriverSuite):
        ipam_driver = "no-such-driver"

    for suite, what in ((TestNothing(), "TestNothing: network"), (TestNobody(), "TestNobody: IPAM")):
        with pytest.raises(pytest.fail.Exception, match=f"{what} driver 'no-such-driver' not found") as failed:
            suite.require_driver()
        assert not failed.value.pytrace
