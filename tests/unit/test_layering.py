"""The rules of the house, read off the syntax trees of every module: who may import whom, and how big a thing may grow."""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ("netlib", "drivers", "ipam", "cni_plugins")
MODULE_LINES = 500
FUNCTION_LINES = 60

# Imports point down only, lazy ones included: from a folder to itself or to one of a lower level. What stands loose in netlib/
# is a contract, the lowest level of all.
_FOLDERS = (
    ("netlib.kernel",),
    ("drivers", "ipam", "netlib.dns", "netlib.firewall", "netlib.store", "netlib.wire"),
    ("netlib.core",),
    ("netlib.runtime",),
    ("cni_plugins",),
    ("netlib.verbs",),
    ("netlib.daemon",),
    ("netlib.cli", "netlib.__main__", "netlib.testing", "labs"),
)
LEVELS = {folder: number for number, folders in enumerate(_FOLDERS, 1) for folder in folders}
CONTRACT = 0

# Libraries that stay behind one door, and where the door is.
DOORS = {
    "pyroute2": ("netlib.kernel",),
    "ctypes": ("netlib.kernel", "netlib.runtime.process", "netlib.firewall.libnftables"),
    "iptc": ("netlib.firewall.legacy",),
    "netaddr": ("ipam",),
}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"


def imported(node: ast.AST) -> Iterator[str]:
    """Every name that *node* imports, in full, wherever the import stands, but for those made for types only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"line {child.lineno}: write the import in full"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif is_for_types_only(child):
            assert isinstance(child, ast.If)
            yield from imported(ast.Module(child.orelse, []))
        else:
            yield from imported(child)


def level(module: str) -> int | None:
    """The level of one of our modules; None for a library's, and for ``netlib`` itself, which only names things."""
    parts = module.split(".")
    own = CONTRACT if parts[0] == "netlib" and len(parts) > 1 else None
    return LEVELS.get(".".join(parts[:2]), LEVELS.get(parts[0], own))


def module_of(name: str) -> str:
    """The module of ours that an imported name is, or is in."""
    return name if name in MODULES else name.rpartition(".")[0]


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


MODULES = {module_name(path): path for path in python_files(*SHIPPED, "labs")}
EVERYTHING = {module_name(path): path for path in python_files(*SHIPPED, "labs", "benchmarks", "tests")}


def test_imports_point_down() -> None:
    wrong = [
        f"{importer} (level {own}) imports {target} (level {other})"
        for importer, path in MODULES.items()
        for target in imported(tree_of(path))
        if (own := level(importer)) is not None and (other := level(module_of(target))) is not None and other > own
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports() -> None:
    """Nor one of lazy imports: what needs each other is one module, or one of the two is too big."""
    left = {
        module: {found for target in imported(tree_of(path)) if (found := module_of(target)) in MODULES and found != module}
        for module, path in MODULES.items()
    }
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    assert not left, f"on a circle, or leading to one: {', '.join(sorted(left))}"


def test_only_contracts_stand_loose_in_netlib() -> None:
    """A new file has its level by where it stands."""
    loose = {path.stem for path in (ROOT / "netlib").glob("*.py")}
    assert loose == {
        "__init__", "__main__", "codec", "config", "driverapi", "errors", "facts", "ipamapi", "model", "names", "objects",
        "options", "packages",
        "plan", "ports", "registry", "requests", "settings", "structs",
    }  # fmt: skip


def test_risky_libraries_stay_behind_their_door() -> None:
    wrong = [
        f"{importer} imports {library}: only {', '.join(DOORS[library])} may"
        for importer, path in MODULES.items()
        for library in {target.partition(".")[0] for target in imported(tree_of(path))} & DOORS.keys()
        if not within(importer, DOORS[library])
    ]
    assert not wrong, "\n".join(wrong)


def test_no_door_is_open_that_nobody_uses() -> None:
    users: dict[str, set[str]] = {library: set() for library in DOORS}
    for importer, path in MODULES.items():
        for library in {target.partition(".")[0] for target in imported(tree_of(path))} & DOORS.keys():
            users[library].add(importer)
    unused = [
        f"{place} may import {library}, and does not"
        for library, places in DOORS.items()
        for place in places
        if not any(within(user, (place,)) for user in users[library])
    ]
    assert not unused, "\n".join(unused)


def test_every_module_says_what_it_is() -> None:
    wrong = [module for module, path in EVERYTHING.items() if not ast.get_docstring(tree_of(path))]
    assert not wrong, f"no docstring (what it owns, and its one rule): {', '.join(wrong)}"


def test_modules_and_functions_stay_small() -> None:
    wrong = []
    for module, path in EVERYTHING.items():
        lines = len(path.read_text().splitlines())
        if lines > MODULE_LINES:
            wrong.append(f"{module} has {lines} lines, more than {MODULE_LINES}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > FUNCTION_LINES:
                    wrong.append(f"{module}.{node.name} has {size} lines, more than {FUNCTION_LINES}")
    assert not wrong, "\n".join(wrong)


def test_no_shell_runs_our_commands() -> None:
    wrong = [
        f"{module}, line {node.lineno}"
        for module, path in EVERYTHING.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert not wrong, f"a shell is asked for: {'; '.join(wrong)}"


def test_every_folder_of_tests_is_collected() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders == {*settings["testpaths"]}


def test_an_import_is_seen_wherever_it_hides() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import iptc
else:
    import netaddr
def lazily():
    with open("x"):
        from pyroute2 import IPRoute
from netlib.core import controller
"""
    found = set(imported(ast.parse(source)))
    assert {"netaddr", "pyroute2.IPRoute", "netlib.core.controller"} <= found
    assert "iptc" not in found
    modules = ("netlib.model", "netlib.kernel.handle", "drivers.bridge", "netlib.core.host", "netlib.cli.main", "pyroute2")
    assert [level(module) for module in modules] == [CONTRACT, 1, 2, 3, 8, None]
