"""``netlib network …``: Docker's commands for networks."""

from argparse import Namespace

from netlib.cli.arguments import Command, Parser
from netlib.cli.outcome import each
from netlib.cli.render import SHORT_ID, Column, confirm, print_objects, print_rows, progress
from netlib.config import Config
from netlib.errors import NotFound
from netlib.verbs.call import call

HELP = """\
usage: netlib network COMMAND …

  create      create a network and print its id
  ls          list networks
  inspect     show networks with their members in JSON
  connect     connect a container to a network, while it runs
  disconnect  disconnect a container from a network
  rm          remove networks that no container is in
  prune       remove all networks of yours that no container is in

`netlib network COMMAND --help` shows more.
"""

_COLUMNS = (Column("NETWORK ID", "ID"), Column("NAME", "Name"), Column("DRIVER", "Driver"), Column("SCOPE", "Scope"))


def create_parser() -> Parser:
    """The arguments of ``network create``."""
    parser = Parser(
        "network create",
        "Create a network and print its id.",
        "web",
        "--subnet 172.28.0.0/16 --ip-range 172.28.5.0/24 --gateway 172.28.5.254 web",
        "--ipv6 --subnet 172.28.0.0/16 --subnet fd00:28::/64 dual",
        "--internal -o com.docker.network.driver.mtu=1400 backend",
        usage="[OPTION …] NETWORK",
    )
    parser.value(
        "-d", "--driver", metavar="NAME", default="bridge", field="driver", purpose="bridge, or another installed driver"
    )
    parser.values("--subnet", metavar="CIDR", field="subnets", purpose="subnet, repeatable (a free one)")
    parser.values("--gateway", metavar="IP", field="gateways", purpose="gateway of a subnet (its first address)")
    parser.values("--ip-range", metavar="CIDR", field="ip_ranges", purpose="where in a subnet containers get addresses")
    parser.values("--aux-address", metavar="NAME=IP", field="auxiliary", purpose="address that no container is to get")
    parser.switch("--internal", field="internal", purpose="nothing leads out of it, nor into it")
    parser.switch("--ipv4", on=True, field="ipv4", purpose="give members IPv4 addresses (yes)")
    parser.switch("--ipv6", field="ipv6", purpose="give members IPv6 addresses (no)")
    parser.values("-o", "--opt", metavar="KEY=VALUE", field="options", purpose="option of the driver")
    parser.values("--label", metavar="KEY=VALUE", field="labels", purpose="label to find it by")
    parser.value(
        "--ipam-driver", metavar="NAME", default="default", field="ipam_driver", purpose="what gives out the addresses"
    )
    parser.values("--ipam-opt", metavar="KEY=VALUE", field="ipam_options", purpose="option of the IPAM driver")
    parser.value("--scope", metavar="SCOPE", default="local", field="scope", purpose="how far it reaches: local, this host")
    parser.switch("--attachable", purpose="for Docker's sake; has no effect")
    parser.positional("name", "NETWORK", field=True)
    return parser


def create(config: Config, given: Namespace) -> int:
    """Create a network."""
    with progress(f"creating network {given.name}") as tell:
        created = call(config, "network.create", given.asked, progress=tell)
    print(created["Id"])
    return 0


def ls_parser() -> Parser:
    """The arguments of ``network ls``."""
    parser = Parser(
        "network ls", "List networks.", "", "--filter type=custom --format '{{.Name}}'", usage="[-q] [--no-trunc] [OPTION …]"
    )
    parser.values(
        "-f",
        "--filter",
        metavar="KEY=VALUE",
        purpose="driver, id, label, name, scope, type=custom or builtin, dangling=true or false",
    )
    parser.value("--format", metavar="FORMAT", purpose="json, or a template like '{{.Name}}'")
    parser.switch("-q", "--quiet", purpose="ids only")
    parser.switch("--no-trunc", purpose="ids in full")
    return parser


def ls(config: Config, given: Namespace) -> int:
    """List networks."""
    rows = call(config, "network.ls", {"filters": given.filter})
    if not given.no_trunc:
        rows = [{**row, "ID": row["ID"][:SHORT_ID]} for row in rows]
    print_rows(rows, _COLUMNS, given.format, quiet="ID" if given.quiet else "")
    return 0


def inspect_parser() -> Parser:
    """The arguments of ``network inspect``."""
    parser = Parser(
        "network inspect",
        "Show networks with their members in JSON.",
        "web",
        "-f '{{range .Containers}}{{.Name}} {{println .IPv4Address}}{{end}}' web",
        usage="[-f FORMAT] NETWORK …",
    )
    parser.format_option()
    parser.switch("-v", "--verbose", purpose="accepted; everything is shown anyway")
    parser.names("NETWORK")
    return parser


def inspect(config: Config, given: Namespace) -> int:
    """Show networks."""
    found, code = each(given.names, lambda name: call(config, "network.inspect", {"names": [name]})[0])
    print_objects(found, given.template)
    return code


def connect_parser() -> Parser:
    """The arguments of ``network connect``."""
    parser = Parser(
        "network connect",
        "Connect a container to a network, while it runs or before.",
        "--alias database web db",
        "--ip 172.28.0.10 web db",
        usage="[OPTION …] NETWORK CONTAINER",
    )
    parser.value("--ip", metavar="IP", field="ip", purpose="IPv4 address to have")
    parser.value("--ip6", metavar="IP", field="ip6", purpose="IPv6 address to have")
    parser.values("--alias", metavar="NAME", field="aliases", purpose="one more name here")
    parser.values("--link", metavar="NAME[:ALIAS]", field="links", purpose="a name by which it finds another container")
    parser.values("--driver-opt", metavar="KEY=VALUE", field="options", purpose="option of the driver")
    parser.number("--gw-priority", field="gw_priority", purpose="the network with the highest has the default route (0)")
    parser.value("--mac-address", metavar="MAC", field="mac", purpose="MAC address to have")
    parser.positional("network", "NETWORK", field=True)
    parser.positional("container", "CONTAINER", field=True)
    return parser


def connect(config: Config, given: Namespace) -> int:
    """Connect a container to a network."""
    with progress(f"connecting {given.container} to {given.network}") as tell:
        call(config, "network.connect", given.asked, progress=tell)
    return 0


def disconnect_parser() -> Parser:
    """The arguments of ``network disconnect``."""
    parser = Parser("network disconnect", "Disconnect a container from a network.", "web db", usage="[-f] NETWORK CONTAINER")
    parser.switch("-f", "--force", purpose="no error when the container is not in it")
    parser.positional("network", "NETWORK", field=True)
    parser.positional("container", "CONTAINER", field=True)
    return parser


def disconnect(config: Config, given: Namespace) -> int:
    """Disconnect a container from a network."""
    with progress(f"disconnecting {given.container} from {given.network}") as tell:
        try:
            call(config, "network.disconnect", given.asked, progress=tell)
        except NotFound:
            if not given.force:
                raise
    return 0


def rm_parser() -> Parser:
    """The arguments of ``network rm``."""
    parser = Parser("network rm", "Remove networks that no container is in.", "web backend", usage="[-f] NETWORK …")
    parser.switch("-f", "--force", purpose="no error for a network that does not exist")
    parser.names("NETWORK")
    return parser


def rm(config: Config, given: Namespace) -> int:
    """Remove networks; print the names of the removed ones."""

    def remove_one(name: str) -> None:
        try:
            with progress(f"removing network {name}") as tell:
                call(config, "network.rm", {"name": name}, progress=tell)
        except NotFound:
            if not given.force:
                raise
        else:
            print(name)

    return each(given.names, remove_one)[1]


def prune_parser() -> Parser:
    """The arguments of ``network prune``."""
    parser = Parser(
        "network prune",
        "Remove all networks of yours that no container is in.",
        "-f --filter label=project=shop",
        usage="[-f] [--filter label=KEY]",
    )
    parser.switch("-f", "--force", purpose="do not ask")
    parser.values("--filter", metavar="KEY=VALUE", purpose="label=KEY[=VALUE], label!=KEY[=VALUE]")
    return parser


def prune(config: Config, given: Namespace) -> int:
    """Remove unused networks, once confirmed."""
    if not given.force:
        confirm("This removes all networks of yours that no container is in. Go on?")
    with progress("removing networks") as tell:
        removed = call(config, "network.prune", {"filters": given.filter}, progress=tell)["NetworksDeleted"]
    if removed:
        print("\n".join(["Deleted Networks:", *removed]))
    return 0


COMMANDS: dict[str, Command] = {
    "connect": (connect_parser, connect),
    "create": (create_parser, create),
    "disconnect": (disconnect_parser, disconnect),
    "inspect": (inspect_parser, inspect),
    "list": (ls_parser, ls),
    "ls": (ls_parser, ls),
    "prune": (prune_parser, prune),
    "remove": (rm_parser, rm),
    "rm": (rm_parser, rm),
}
