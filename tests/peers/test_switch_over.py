"""A host whose runtime goes from the reference's folder to ours with containers running, and back again."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from netlib.config import Config
from netlib.kernel.netns import delete_netns
from netlib.model import NetnsRef
from netlib.testing.snapshot import Snapshot, snapshot
from tests.peers.libcni import PluginError, Runtime
from tests.peers.surroundings import HOST_ADDRESS, answering, ask, left_behind, pings
from tests.peers.test_mixed_chains import PORTS, but_their_chains, conflist, forget_bridge

pytestmark = pytest.mark.runtimes

PUBLISHED = {"portMappings": PORTS}


class Host(NamedTuple):
    """A network of three addresses, under either folder."""

    config: Config
    before: Snapshot
    leases: Path
    ours: Runtime
    theirs: Runtime

    def held(self) -> list[str]:
        """The addresses that are leased, by their files."""
        return sorted(path.name for path in self.leases.glob("10.*"))

    def left(self) -> list[str]:
        """What is left of containers."""
        forget_bridge()
        return but_their_chains(left_behind(self.config, self.before, self.leases))


@pytest.fixture
def host(config: Config, plugins: Path, reference: Path, tmp_path: Path, neighbour: NetnsRef) -> Host:
    network = conflist(tmp_path / "leases", rangeStart="10.23.0.2", rangeEnd="10.23.0.4")
    ours, theirs = Runtime(network, plugins), Runtime(network, reference)
    ours.results = theirs.results  # what a runtime keeps of its containers outlives the plugins
    return Host(config, snapshot(), tmp_path / "leases" / "pods", ours, theirs)


@pytest.fixture
def pods(netns_factory: Callable[[str], NetnsRef]) -> list[NetnsRef]:
    """The netns of containers."""
    return [netns_factory("pod") for _ in range(4)]


def test_containers_of_the_reference_are_detached_by_ours(host: Host, pods: list[NetnsRef], neighbour: NetnsRef) -> None:
    first, second, third, fourth = pods
    inside = snapshot(first)
    host.theirs.add(first.label, **PUBLISHED)
    host.theirs.add(second.label)
    host.ours.add(third.label)
    assert host.held() == ["10.23.0.2", "10.23.0.3", "10.23.0.4"]
    assert pings(third, host.ours.address(first.label))
    with answering(first, 80, "first"):
        assert ask(HOST_ADDRESS, 8080, neighbour) == "first"
    host.ours.delete(first.label, **PUBLISHED)
    assert snapshot(first) == inside
    assert ask(HOST_ADDRESS, 8080, neighbour) is None
    host.ours.add(fourth.label, **PUBLISHED)  # the address, the port, all that the first one had
    assert host.ours.address(fourth.label) == "10.23.0.2"
    with answering(fourth, 80, "fourth"):
        assert ask(HOST_ADDRESS, 8080, neighbour) == "fourth"
    delete_netns(Path(second.path))
    for pod in (second, third, fourth):
        host.ours.delete(pod.label, **PUBLISHED)
    assert host.held() == []
    assert host.left() == []


def test_containers_of_the_reference_are_collected_by_ours(host: Host, pods: list[NetnsRef]) -> None:
    first, second, third, _ = pods
    host.theirs.add(first.label, **PUBLISHED)
    host.theirs.add(second.label)
    host.ours.add(third.label)
    delete_netns(Path(first.path))
    newest = Runtime({**host.ours.conflist, "cniVersion": "1.1.0"}, *host.ours.folders)
    newest.collect([second.label, third.label])
    assert host.held() == ["10.23.0.3", "10.23.0.4"]
    assert pings(second, host.ours.address(third.label))
    assert pings(second, HOST_ADDRESS)
    delete_netns(Path(second.path))
    newest.collect([])
    assert host.held() == []
    assert host.left() == []


def test_back_to_the_reference(host: Host, pods: list[NetnsRef], neighbour: NetnsRef) -> None:
    first, second, third, fourth = pods
    inside = snapshot(first)
    host.ours.add(first.label, **PUBLISHED)
    host.ours.add(second.label)
    host.theirs.add(third.label)
    assert host.held() == ["10.23.0.2", "10.23.0.3", "10.23.0.4"]
    assert pings(third, host.ours.address(first.label))
    with pytest.raises(PluginError, match="does not exist"):  # it misses its chain of masquerading, when all else is done
        host.theirs.delete(first.label, **PUBLISHED)
    host.theirs.delete(first.label, **PUBLISHED)
    assert snapshot(first) == inside
    host.theirs.add(fourth.label)
    assert host.theirs.address(fourth.label) == "10.23.0.2"
    assert pings(fourth, host.ours.address(second.label))

    newest = Runtime({**host.ours.conflist, "cniVersion": "1.1.0"}, *host.ours.folders)
    newest.collect([pod.label for pod in (second, third, fourth)])  # ours hears that the first one is gone
    assert host.held() == ["10.23.0.2", "10.23.0.3", "10.23.0.4"]
    assert pings(fourth, HOST_ADDRESS)
    host.theirs.delete(third.label)
    host.theirs.delete(fourth.label)
    host.ours.delete(second.label)
    assert host.held() == []
    assert host.left() == []
