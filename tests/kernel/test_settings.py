"""``daemon.json`` in effect: the default bridge, automatic subnets, resolvers and forwarding as it says."""

import json
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ConfigError, Conflict, NetlibError
from netlib.firewall.objects import Masquerade
from netlib.model import ResolverConfig
from netlib.settings import settings_file
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.perform import perform
from netlib.wire import notices
from netlib.wire.notices import shown_by


@pytest.fixture(autouse=True)
def _each_notice_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_shown", set())


def settings(config: Config, **keys: Any) -> None:
    path = Path(settings_file(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key.replace("_", "-"): value for key, value in keys.items()}))


def opened(config: Config) -> Controller:
    return Controller(config, watcher=Unwatched())


def test_the_default_bridge_is_as_it_says(config: Config) -> None:
    settings(
        config,
        bip="10.90.0.1/24",
        fixed_cidr="10.90.0.64/26",
        default_gateway="10.90.0.254",
        mtu=1400,
        icc=False,
        ip_masq=False,
    )
    before = snapshot()
    with opened(config) as controller:
        bridge = controller.network("bridge")
        assert [(str(pool.subnet), str(pool.gateway)) for pool in bridge.pools] == [("10.90.0.0/24", "10.90.0.1")]
        box = controller.create_sandbox("box")
        endpoint = controller.connect("bridge", "box")
        assert str(endpoint.addresses[0]) == "10.90.0.64/24"
        made = controller.explain("bridge") + controller.explain(box)
        assert any("10.90.0.1/24" in line and "netlib0" in line for line in made)
        assert any("default" in line and "via 10.90.0.254" in line for line in made)
        assert any("mtu 1400" in line for line in made)
        assert not controller.plan_of("bridge").of(Masquerade)
        controller.reset()
    assert differences(before, snapshot()) == []


def test_the_bridge_follows_once_nobody_is_in_it(config: Config) -> None:
    with opened(config) as controller:
        controller.create_sandbox("box")
        controller.connect("bridge", "box")
        former = controller.network("bridge")
        settings(config, bip="10.90.0.1/24")
        controller.create_network("other")  # says nothing: it does not use the network
        controller.create_sandbox("more")
        with pytest.warns(RuntimeWarning, match="network bridge still has its former settings, because containers are in it"):
            controller.connect("bridge", "more")
        assert controller.network("bridge") == former
        controller.remove_sandboxes(["box", "more"])
        controller.remove_network("other")
        assert str(controller.network("bridge").pools[0].subnet) == "10.90.0.0/24"
        first = controller.network("bridge").id
    with opened(config) as controller:
        assert controller.network("bridge").id == first
    Path(settings_file(config)).unlink()
    with opened(config) as controller:
        assert str(controller.network("bridge").pools[0].subnet) == "172.17.0.0/16"
        controller.reset()


def test_it_is_read_again_when_a_verb_begins(config: Config) -> None:
    with opened(config) as controller:
        settings(config, mtu=1300, dns=["192.0.2.53"])
        box = controller.create_sandbox("box")
        assert [str(item) for item in box.resolver.servers] == ["192.0.2.53"]
        controller.connect("bridge", "box")
        assert any("mtu 1300" in line for line in controller.explain("box"))
        controller.remove_sandbox("box")
        settings(config, mtu=1400, dns=["192.0.2.53"])
        [bridge, *_] = perform(controller, "network.inspect", {"names": ["bridge"]})
        assert bridge["Options"]["com.docker.network.driver.mtu"] == "1400"
        controller.reset()


def test_automatic_subnets_come_from_its_pools(config: Config) -> None:
    settings(config, default_address_pools=[{"base": "10.91.0.0/23", "size": 24}])
    with opened(config) as controller:
        assert [str(controller.create_network(name).pools[0].subnet) for name in "ab"] == ["10.91.0.0/24", "10.91.1.0/24"]
        with pytest.raises(Exception, match=r"cover all of 10\.91\.0\.0/23"):
            controller.create_network("c")
        controller.reset()


def test_resolvers_are_its_own_where_a_sandbox_asks_for_none(config: Config) -> None:
    settings(config, dns=["192.0.2.53"], dns_search=["example.org"], dns_opts=["ndots:3"])
    with opened(config) as controller:
        box = controller.create_sandbox("box")
        controller.connect("bridge", "box")
        text = Path(box.files_dir, "resolv.conf").read_text()
        assert ("nameserver 192.0.2.53" in text, "search example.org" in text, "ndots:3" in text) == (True, True, True)
        other = controller.create_sandbox("other", resolver=ResolverConfig(search=("example.net",)))
        assert other.resolver.search == ("example.net",)
        controller.reset()


def test_forwarding_can_be_left_to_the_administrator(config: Config) -> None:
    settings(config, ip_forward=False)
    path = Path("/proc/sys/net/ipv4/ip_forward")
    path.write_text("0")
    with opened(config) as controller:
        controller.create_network("web")
        assert path.read_text().strip() == "0"
        controller.reset()


MAKING: list[Callable[[Controller], object]] = [
    lambda controller: controller.create_network("new"),
    lambda controller: controller.create_sandbox("new"),
    lambda controller: controller.connect("web", "alone"),
    lambda controller: perform(controller, "container.run", {"command": ["true"], "networks": ["bridge"]}),
    lambda controller: perform(controller, "network.connect", {"network": "web", "container": "alone"}),
]


@pytest.mark.parametrize("is_warm", [True, False])
def test_a_wrong_file_stops_what_makes_things_and_nothing_else(config: Config, is_warm: bool) -> None:
    with opened(config) as former:
        former.create_network("web")
        former.create_sandbox("box")
        former.create_sandbox("alone")
        former.connect("web", "box")
        bridge = former.network("bridge")
        settings(config, bip="nowhere")
        before = snapshot()
        with nullcontext(former) if is_warm else opened(config) as controller:
            for make in MAKING:
                with pytest.raises(ConfigError, match=r"^/.*/daemon\.json: bip='nowhere' is no address"):
                    make(controller)
            assert differences(before, snapshot()) == []
            told = "daemon\\.json: bip='nowhere' is no address .*; nothing is made until that is corrected"
            with pytest.warns(RuntimeWarning, match=told):
                info = perform(controller, "system.info", {})
            assert info["SettingsFault"].startswith(f"{settings_file(config)}: bip='nowhere'")
            with shown_by(lambda sentence: None):
                for verb, names in (("network.ls", {}), ("log", {}), ("network.inspect", {"names": ["web"]})):
                    assert perform(controller, verb, names)
            controller.disconnect("web", "box")
            controller.remove_sandbox("box")
            controller.remove_network("web")
            assert controller.network("bridge") == bridge
            controller.reset()
            assert [network.name for network in controller.networks()] == ["bridge", "host", "none"]
            settings(config, mtu=1300)
            controller.create_network("web")
            assert controller.network("bridge").options["com.docker.network.driver.mtu"] == "1300"
            controller.reset()


def test_a_subnet_that_the_host_uses_stops_what_makes_things_and_nothing_else(config: Config) -> None:
    with opened(config) as controller:
        controller.create_sandbox("box")
        settings(config, bip="10.90.0.1/24")
        command = ["ip", "route", "add", "unreachable", "10.90.0.0/16"]
        subprocess.run(command, check=True)
        try:
            with pytest.raises(
                Conflict, match=r"daemon\.json: network bridge cannot be made with bip=10\.90\.0\.1/24: .*10\.90"
            ):
                controller.connect("bridge", "box")
            with pytest.warns(RuntimeWarning, match="nothing is made until that is corrected"):
                controller.remove_sandbox("box")
        finally:
            subprocess.run(["ip", "route", "del", *command[3:]], check=True)
        controller.create_sandbox("box")
        controller.connect("bridge", "box")
        controller.reset()


def test_a_key_without_effect_is_told_once_where_it_asks_for_something_else(config: Config) -> None:
    settings(config, iptables=False, ip="127.0.0.1", userland_proxy=False)
    told: list[str] = []
    for _ in range(2):
        with opened(config) as controller, shown_by(told.append):
            for name in "ab":
                controller.create_network(name)
                controller.remove_network(name)
    text = f'{settings_file(config)}: "ip": "127.0.0.1", "iptables": false have no effect; netlib does what it does without'
    assert told == [text]
    with opened(config) as controller:
        controller.reset()


@pytest.mark.parametrize("kind", ["a file", "in a file"])
def test_a_state_folder_that_is_no_folder_is_named(config: Config, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text("")
    folder = path if kind == "a file" else path / "state"
    with pytest.raises(NetlibError, match=f"{path}.*--state-dir") as caught:
        opened(config._replace(state_dir=folder))
    assert "daemon.json" not in str(caught.value)
    assert "Errno" not in str(caught.value)


def test_info_names_what_has_no_effect_yet(config: Config) -> None:
    settings(config, userland_proxy=False)
    with opened(config) as controller:
        found = perform(controller, "system.info", {})
    assert (found["SettingsFile"], found["SettingsWithoutEffect"]) == (settings_file(config), ["userland-proxy"])
