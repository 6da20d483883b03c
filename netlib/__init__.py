"""netlib connects containers: networks, sandboxes and endpoints (the Container Network Model) as a library.

The public names are resolved at first use, so that ``import netlib`` costs nothing.
"""

TYPE_CHECKING = False  # importing typing costs 10 ms and 1 MB, in each container's minder
if TYPE_CHECKING:
    from netlib import errors, model
    from netlib.config import Config
    from netlib.core.controller import Controller, Unwatched
    from netlib.errors import NetlibError
    from netlib.model import AddressPool, Endpoint, Link, Network, PortMapping, ResolverConfig, Sandbox

__all__ = [
    "AddressPool",
    "Config",
    "Controller",
    "Endpoint",
    "Link",
    "NetlibError",
    "Network",
    "PortMapping",
    "ResolverConfig",
    "Sandbox",
    "Unwatched",
    "errors",
    "model",
]
__version__ = "0.1.0"

_HOMES = {
    "Config": "netlib.config",
    "Controller": "netlib.core.controller",
    "NetlibError": "netlib.errors",
    "Unwatched": "netlib.core.controller",
}
_MODULES = ("errors", "model")


if not TYPE_CHECKING:  # to a type checker every name that a module answers by this would be right

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'netlib' has no attribute {name!r}")
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"netlib.{name}")
        return getattr(import_module(_HOMES.get(name, "netlib.model")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
