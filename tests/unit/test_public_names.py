"""What other people's programs hold on to: the public names, the entry points, the tags in the store."""

import os
import pydoc
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import netlib
from netlib import objects, registry
from netlib.plan import KernelObject

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS: dict[str, str] = PROJECT["scripts"]


@pytest.mark.parametrize("name", netlib.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(netlib, name).__name__ in (name, f"netlib.{name}")


def test_public_names_are_sorted_and_nothing_else_is_answered() -> None:
    assert netlib.__all__ == sorted(netlib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = netlib.Nonsense  # type: ignore[attr-defined]


def test_dir_and_help_show_what_there_is() -> None:
    assert dir(netlib) == sorted([*netlib.__all__, "__version__"])
    shown = pydoc.plain(pydoc.render_doc(netlib.Controller))
    for keyword in ("subnets: collections.abc.Iterable", "ip_ranges", "aliases", "gw_priority: int = 0", "sysctls"):
        assert keyword in shown
    assert "NetworkRequest" not in shown


def test_import_netlib_loads_no_library() -> None:
    code = "import sys, netlib; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()
    assert not {"pyroute2", "msgspec", "iptc", "netaddr", "dns", "rich", "typer", "sqlite3", "asyncio"} & set(loaded)


@pytest.mark.parametrize(
    ("group", "builtin"),
    [("netlib.drivers", registry._DRIVERS), ("netlib.ipam_drivers", registry._IPAM_DRIVERS)],
)
def test_entry_points_are_the_built_in_drivers(group: str, builtin: dict[str, str]) -> None:
    assert PROJECT["entry-points"][group] == builtin


@pytest.mark.parametrize("name", registry._DRIVERS)
def test_network_driver_is_found_by_its_name(name: str) -> None:
    assert registry.driver(name).name == name


@pytest.mark.parametrize("name", registry._IPAM_DRIVERS)
def test_ipam_driver_is_found_by_its_name(name: str) -> None:
    assert registry.ipam_driver(name).name == name


@pytest.mark.parametrize("tag", objects._OBJECTS)
def test_stored_tag_leads_to_its_class(tag: str) -> None:
    kind = objects.object_class(tag)
    assert issubclass(kind, KernelObject)
    assert kind.__struct_config__.tag == tag


@pytest.mark.parametrize("command", COMMANDS)
def test_command_leads_to_a_function(command: str) -> None:
    module, _, function = COMMANDS[command].partition(":")
    assert callable(getattr(import_module(module), function))


def test_version_is_told_once() -> None:
    assert "version" in PROJECT["dynamic"]
    assert netlib.__version__.count(".") == 2
