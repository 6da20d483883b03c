"""netlib connects containers: networks, sandboxes and endpoints (the Container Network Model) as a library.

The public names are resolved at first use, so that ``import netlib`` costs nothing.
"""

TYPE_CHECKING = False  # importing typing costs 10 ms and 1 MB, in each container's minder
if TYPE_CHECKING:
    from typing import Any

    from netlib.config import Config
    from netlib.core.controller import Controller
    from netlib.errors import NetlibError
    from netlib.model import AddressPool, Endpoint, Network, PortMapping, Sandbox

__all__ = ["AddressPool", "Config", "Controller", "Endpoint", "NetlibError", "Network", "PortMapping", "Sandbox"]
__version__ = "0.1.0"

_HOMES = {
    "AddressPool": "netlib.model",
    "Config": "netlib.config",
    "Controller": "netlib.core.controller",
    "Endpoint": "netlib.model",
    "NetlibError": "netlib.errors",
    "Network": "netlib.model",
    "PortMapping": "netlib.model",
    "Sandbox": "netlib.model",
}


def __getattr__(name: str) -> "Any":
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'netlib' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
