"""``daemon.json`` in effect: the default bridge, automatic subnets, resolvers and forwarding as it says."""

import json
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.controller import Controller, Unwatched
from netlib.errors import ConfigError
from netlib.firewall.objects import Masquerade
from netlib.model import ResolverConfig
from netlib.settings import settings_file
from netlib.testing.snapshot import differences, snapshot
from netlib.verbs.perform import perform


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
    settings(config, bip="10.90.0.1/24")
    with pytest.warns(RuntimeWarning, match="bridge keeps its former settings"):
        controller = opened(config)
    with controller:
        assert str(controller.network("bridge").pools[0].subnet) == "172.17.0.0/16"
        controller.remove_sandbox("box")
    with opened(config) as controller:
        assert str(controller.network("bridge").pools[0].subnet) == "10.90.0.0/24"
        first = controller.network("bridge").id
    with opened(config) as controller:
        assert controller.network("bridge").id == first
    Path(settings_file(config)).unlink()
    with opened(config) as controller:
        assert str(controller.network("bridge").pools[0].subnet) == "172.17.0.0/16"
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


def test_a_wrong_file_stops_every_command_and_changes_nothing(config: Config) -> None:
    before = snapshot()
    settings(config, bip="nowhere")
    with pytest.raises(ConfigError, match=r"daemon\.json: bip='nowhere' is no address"):
        opened(config)
    assert differences(before, snapshot()) == []


def test_info_names_what_has_no_effect_yet(config: Config) -> None:
    settings(config, userland_proxy=False)
    with opened(config) as controller:
        found = perform(controller, "system.info", {})
    assert (found["SettingsFile"], found["SettingsWithoutEffect"]) == (settings_file(config), ["userland-proxy"])
