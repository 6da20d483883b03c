"""``daemon.json``: what is in effect, what is named as not yet, and what is refused by its key and its value."""

import ipaddress
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from netlib.config import Config
from netlib.core.predefined import predefined
from netlib.errors import ConfigError
from netlib.model import ResolverConfig
from netlib.settings import AddressBlock, Settings, SettingsFile, read_settings, settings_file
from tests.kernel.dns_client import wait_until


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(tmp_path, tmp_path / "run")


def written(config: Config, content: Any) -> Settings:
    text = content if isinstance(content, str) else json.dumps(content)
    Path(settings_file(config)).write_text(text)
    return read_settings(config)


def test_every_key_that_has_an_effect(config: Config) -> None:
    settings = written(
        config,
        {
            "bip": "172.26.0.1/16",
            "fixed-cidr": "172.26.4.0/24",
            "default-gateway": "172.26.0.254",
            "default-address-pools": [{"base": "10.128.0.0/16", "size": 24}, {"base": "fd00:1::/48", "size": 64}],
            "mtu": 1400,
            "icc": False,
            "ip-masq": False,
            "ip-forward": False,
            "dns": ["10.0.0.53", "fd00::53"],
            "dns-opts": ["ndots:2"],
            "dns-search": ["example.org"],
        },
    )
    assert settings == Settings(
        bip=ipaddress.ip_interface("172.26.0.1/16"),
        fixed_cidr=ipaddress.ip_network("172.26.4.0/24"),
        default_gateway=ipaddress.ip_address("172.26.0.254"),
        default_address_pools=(
            AddressBlock(ipaddress.ip_network("10.128.0.0/16"), 24),
            AddressBlock(ipaddress.ip_network("fd00:1::/48"), 64),
        ),
        mtu=1400,
        icc=False,
        ip_masq=False,
        ip_forward=False,
        dns=(ipaddress.ip_address("10.0.0.53"), ipaddress.ip_address("fd00::53")),
        dns_opts=("ndots:2",),
        dns_search=("example.org",),
    )
    bridge, *_ = predefined(settings)
    assert (bridge.subnets, bridge.gateways) == (
        (ipaddress.ip_network("172.26.0.0/16"),),
        (ipaddress.ip_address("172.26.0.1"),),
    )
    assert bridge.auxiliary == {"DefaultGatewayIPv4": ipaddress.ip_address("172.26.0.254")}
    assert bridge.options == {
        "com.docker.network.bridge.name": "netlib0",
        "com.docker.network.driver.mtu": "1400",
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.enable_ip_masquerade": "false",
    }


@pytest.mark.parametrize("content", ["", "{}"])
def test_an_empty_file_is_no_settings(config: Config, content: str) -> None:
    assert written(config, content) == Settings() == read_settings(Config(config.state_dir / "elsewhere", config.run_dir))


def test_the_hosts_own_file_is_in_etc() -> None:
    assert settings_file(Config()) == "/etc/netlib/daemon.json"


def test_dockers_own_file_can_be_used(config: Config) -> None:
    settings = written(config, {"data-root": "/srv", "log-driver": "json-file", "userland-proxy": False, "iptables": True})
    assert settings == Settings(without_effect=("iptables", "userland-proxy"))


def test_keys_that_ask_for_something_else_than_is_done_are_told_apart(config: Config) -> None:
    settings = written(config, {"iptables": False, "ip": "127.0.0.1", "userland-proxy": False, "ip6tables": True, "bridge": ""})
    assert settings.missed == ('"ip": "127.0.0.1"', '"iptables": false')
    assert settings.without_effect == ("bridge", "ip", "ip6tables", "iptables", "userland-proxy")


def test_what_is_no_file_is_refused(config: Config) -> None:
    path = Path(settings_file(config))
    path.mkdir()
    with pytest.raises(ConfigError, match=f"{path} is no file; write a file with a JSON object"):
        read_settings(config)
    path.rmdir()
    os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(ConfigError, match="is no file"):
        read_settings(config)
    path.unlink()
    path.write_bytes(b'{"bip": "\xff"}')
    with pytest.raises(ConfigError, match="is no UTF-8 text"):
        read_settings(config)


def test_a_change_of_the_file_is_noticed(config: Config) -> None:
    file, path = SettingsFile(config), Path(settings_file(config))
    assert (file.known, file.fault, file.look()) == (Settings(), None, False)
    path.write_text('{"mtu": 1300}')
    assert (file.look(), file.known.mtu) == (True, 1300)
    path.write_text('{"mtu": 1400}')  # of the same size, within the same tick of the clock
    assert (file.look(), file.known.mtu) == (True, 1400)
    path.write_text("{")
    assert (file.look(), file.known.mtu) == (True, 1400)
    assert "is no JSON" in str(file.fault)
    assert not file.look()
    path.unlink()
    assert (file.look(), file.known, file.fault) == (True, Settings(), None)


def test_an_unchanged_file_costs_one_stat(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(settings_file(config))
    path.write_text('{"mtu": 1300}')
    wait_until(lambda: time.time_ns() - path.stat().st_ctime_ns > 100_000_000, "the change is not of just now")
    file = SettingsFile(config)
    monkeypatch.setattr("netlib.settings.read_settings", lambda config: pytest.fail("read again"))
    stats: list[object] = []
    real = os.stat

    def counted(path: str) -> os.stat_result:
        stats.append(path)
        return real(path)

    monkeypatch.setattr("os.stat", counted)
    assert not file.look()
    assert stats == [str(path)]


def test_a_sandbox_that_asks_for_something_gets_that() -> None:
    settings = Settings(dns=(ipaddress.ip_address("10.0.0.53"),), dns_search=("example.org",))
    asked = ResolverConfig(servers=(ipaddress.ip_address("192.0.2.53"),), options=("rotate",))
    assert settings.resolver(asked) == ResolverConfig(
        servers=(ipaddress.ip_address("192.0.2.53"),), options=("rotate",), search=("example.org",)
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object"),
        ({"subnet": "10.0.0.0/8"}, "unknown key 'subnet'; the networking keys are allow-direct-routing, bip, bridge"),
        ("[" * 100_000, "is no JSON"),
        ({"mtu": "1400"}, 'mtu="1400" must be a whole number'),
        ({"mtu": True}, "mtu=true must be a whole number"),
        ({"mtu": 10}, "mtu 10 is not possible"),
        ({"ip-masq": "no"}, 'ip-masq="no" must be true or false'),
        ({"bip": "172.26.0.1"}, "bip='172.26.0.1' has no prefix length; write it like 172.26.0.1/24"),
        ({"bip": "172.26.0.1/31"}, "bip='172.26.0.1/31' leaves no room for containers"),
        ({"bip": "10.200.0.0/24"}, "bip='10.200.0.0/24' is the address of the subnet itself, not one that the bridge can have"),
        ({"bip": "10.200.0.255/24"}, "bip='10.200.0.255/24' is the address of its broadcasts"),
        ({"dns-search": ["bad domain"]}, 'dns-search "bad domain": letters, digits'),
        ({"dns-search": [7]}, "dns-search=[7] must be a list of texts"),
        ({"dns-opts": ["x y"]}, 'dns-opts "x y": a word such as rotate'),
        ({"bip": "here"}, "bip='here' is no address with its prefix length"),
        ({"fixed-cidr": "172.26.4.0/24"}, "fixed-cidr=172.26.4.0/24 needs bip"),
        ({"bip": "172.26.0.1/16", "fixed-cidr": "172.27.0.0/24"}, "fixed-cidr=172.27.0.0/24 is no part of 172.26.0.0/16"),
        ({"bip": "172.26.0.1/16", "default-gateway": "172.27.0.1"}, "default-gateway=172.27.0.1 is outside of 172.26.0.0/16"),
        ({"bip": "172.26.0.1/16", "fixed-cidr": "172.26.4.1/24"}, "fixed-cidr '172.26.4.1/24' is an address inside a subnet"),
        ({"dns": "10.0.0.1"}, 'dns="10.0.0.1" must be a list of IP addresses'),
        ({"dns": ["here"]}, "dns 'here' is no IP address"),
        ({"default-address-pools": [{"base": "10.0.0.0/8"}]}, 'default-address-pools=[{"base": "10.0.0.0/8"}] must be a list'),
        ({"default-address-pools": [{"base": "10.0.0.0/8", "size": 4}]}, "default-address-pools: size 4 cuts no subnets"),
        ({"default-address-pools": [{"base": "10.0.0.1/8", "size": 24}]}, "default-address-pools: base '10.0.0.1/8' is an"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(config: Config, content: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        written(config, content)
    assert (
        str(caught.value)
        .removeprefix(f"{settings_file(config)}: ")
        .removeprefix(f"{settings_file(config)} ")
        .startswith(sentence)
    )
