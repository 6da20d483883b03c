"""What several of the kernel's tests ask for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from netlib.config import Config
from netlib.dns import upstream
from netlib.model import NetnsRef
from netlib.store.backup import copy_store
from netlib.verbs.lost import reset_lost
from netlib.wire.client import leave
from tests.kernel.dns_client import Loads
from tests.kernel.firewall_world import BRIDGE_NF
from tests.kernel.lost_world import LOSSES, host, run
from tests.kernel.runtime_world import World
from tests.kernel.upstream_world import Asker, Behaviour, Server, Serving


@pytest.fixture(params=["0", "1"], ids=["bridge_nf_0", "bridge_nf_1"])
def bridge_nf(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether bridged frames pass the host's rules; as it was afterwards."""
    before = [path.read_text() for path in BRIDGE_NF]
    for path in BRIDGE_NF:
        path.write_text(request.param)
    yield request.param
    for path, value in zip(BRIDGE_NF, before, strict=True):
        path.write_text(value)


@pytest.fixture
def world(config: Config) -> Iterator[World]:
    world = World(config)
    yield world
    world.clear()


@pytest.fixture
def used(config: Config) -> Iterator[Config]:
    """A host with a container on a network that has written something, and one on none."""
    with host(config) as controller:
        controller.create_network("web", subnets=["10.1.0.0/24", "fd00:1::/64"])
        run(controller, "box", networks=["web"], publish=["8080:80"])
        run(controller, "apart", networks=["none"])
    yield config
    leave(config)
    list(reset_lost(config))


@pytest.fixture(params=LOSSES)
def lost(used: Config, tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    """A host whose store was lost in one of the ways after a third container was started."""
    copy = tmp_path / "copy.db"
    with host(used) as controller:
        copy_store(controller.store.path, copy)
        run(controller, "third", networks=["web"])
    LOSSES[request.param](used, copy)
    return used


@pytest.fixture
def loads() -> Iterator[Loads]:
    made = Loads()
    yield made
    made.close()


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Makes name servers upstream."""
    with ExitStack() as stack:

        def make(address: str, behave: Behaviour) -> Server:
            made = Server(address, behave)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def asker(netns_factory: Callable[[str], NetnsRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asker]:
    """A sandbox that asks upstream, where nobody is waited for long."""
    monkeypatch.setattr(upstream, "RETRY_SECONDS", 0.3)
    monkeypatch.setattr(upstream, "TOTAL_SECONDS", 1.0)
    monkeypatch.setattr(upstream, "_RESOLV_CONF_SECONDS", 0.0)
    made = Asker(netns_factory("asker"), tmp_path / "resolv.conf")
    yield made
    made.server.close()
