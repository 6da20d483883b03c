"""Hosts on which IPv6 is switched off, and kernels that have none."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.core import network_record
from netlib.core.controller import Controller, Unwatched
from netlib.errors import FeatureMissing
from netlib.testing.snapshot import differences, snapshot

_CONF = Path("/proc/sys/net/ipv6/conf")


@pytest.fixture
def controller(config: Config) -> Iterator[Controller]:
    with Controller(config, watcher=Unwatched()) as controller:
        yield controller
        controller.reset()


@pytest.fixture
def switched_off() -> Iterator[None]:
    """``disable_ipv6`` for all links and for those to come."""
    for place in ("all", "default"):
        (_CONF / place / "disable_ipv6").write_text("1")
    yield
    for place in ("all", "default"):
        (_CONF / place / "disable_ipv6").write_text("0")


def _switches() -> dict[str, str]:
    return {path.name: (path / "disable_ipv6").read_text().strip() for path in _CONF.iterdir()}


def _ping(box: str, target: str) -> bool:
    command = ["ip", "netns", "exec", box, "ping", "-c1", "-W1", target]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_dual_stack_network_works_where_ipv6_is_switched_off(controller: Controller, switched_off: None) -> None:
    before, switches = snapshot(), _switches()
    assert set(switches.values()) == {"1"}
    controller.create_network("six", subnets=["10.82.0.0/24", "fd82::/64"])
    for name in ("a", "b"):
        controller.create_sandbox(name)
        controller.connect("six", name)
    assert all(_ping("a", target) for target in ("10.82.0.3", "fd82::3", "fd82::1"))
    assert {name: value for name, value in _switches().items() if name in switches} == switches
    assert controller.check("six") == [] == controller.check("a")
    controller.reset()
    assert differences(before, snapshot()) == []
    assert _switches() == switches


def test_a_kernel_without_ipv6_refuses_it_in_one_sentence(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_record, "kernel_has_ipv6", lambda: False)
    before = snapshot()
    for wanted in ({"ipv6": True}, {"subnets": ["fd83::/64"]}):
        with pytest.raises(FeatureMissing, match=r"^network 'six': this kernel has no IPv6"):
            controller.create_network("six", **wanted)
    assert snapshot() == before
    assert [network.name for network in controller.networks()] == ["bridge", "host", "none"]
    controller.create_network("four")
