"""``netlib network …``: Docker's commands for networks."""

from typing import Annotated

import typer

from netlib.cli.outcome import each
from netlib.cli.render import SHORT_ID, Column, confirm, print_objects, print_rows, progress
from netlib.cli.typed import application, config_of, examples, several
from netlib.client import call
from netlib.errors import NotFound

app = application("Networks: create, list, look at, join, leave, remove.")

_COLUMNS = (Column("NETWORK ID", "ID"), Column("NAME", "Name"), Column("DRIVER", "Driver"), Column("SCOPE", "Scope"))
_FILTERS = "driver=, id=, label=KEY[=VALUE], name=, scope=, type=custom|builtin, dangling=true|false."

Name = Annotated[str, typer.Argument(metavar="NETWORK", help="Name or id of the network.")]
Names = Annotated[list[str], typer.Argument(metavar="NETWORK...", help="Names or ids of networks.")]
Container = Annotated[str, typer.Argument(metavar="CONTAINER", help="Name or id of the container.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Do not ask.")]


@app.command(
    epilog=examples(
        "netlib network create web",
        "netlib network create --subnet 172.28.0.0/16 --ip-range 172.28.5.0/24 --gateway 172.28.5.254 web",
        "netlib network create --ipv6 --subnet 172.28.0.0/16 --subnet fd00:28::/64 dual",
        "netlib network create --internal -o com.docker.network.driver.mtu=1400 backend",
    )
)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NETWORK", help="Name of the new network.")],
    *,
    driver: Annotated[str, typer.Option("--driver", "-d", help="bridge, or another installed driver.")] = "bridge",
    subnets: Annotated[
        list[str],
        several("--subnet", metavar="CIDR", purpose="Subnet; repeat for several. A free one else."),
    ],
    gateways: Annotated[
        list[str],
        several("--gateway", metavar="IP", purpose="Gateway of a subnet. Its first address else."),
    ],
    ip_ranges: Annotated[
        list[str],
        several("--ip-range", metavar="CIDR", purpose="Where in a subnet containers get addresses."),
    ],
    auxiliary: Annotated[
        list[str],
        several("--aux-address", metavar="NAME=IP", purpose="Address that no container is to get."),
    ],
    internal: Annotated[bool, typer.Option("--internal", help="No way out, and none in.")] = False,
    ipv4: Annotated[bool, typer.Option("--ipv4/--no-ipv4", help="IPv4 addresses.")] = True,
    ipv6: Annotated[bool, typer.Option("--ipv6/--no-ipv6", help="IPv6 addresses.")] = False,
    options: Annotated[list[str], several("--opt", "-o", metavar="KEY=VALUE", purpose="Option of the driver.")],
    labels: Annotated[list[str], several("--label", metavar="KEY=VALUE", purpose="Label to find it by.")],
    ipam_driver: Annotated[str, typer.Option(help="Who gives out the addresses.")] = "default",
    ipam_options: Annotated[list[str], several("--ipam-opt", metavar="KEY=VALUE", purpose="Option of the IPAM driver.")],
    scope: Annotated[str, typer.Option(help="How far the network reaches: this host.")] = "local",
    attachable: Annotated[bool, typer.Option("--attachable", help="Accepted; networks of this host always are.")] = False,  # noqa: ARG001
) -> None:
    """Create a network and print its id."""
    args = {
        "name": name,
        "driver": driver,
        "subnets": subnets,
        "gateways": gateways,
        "ip_ranges": ip_ranges,
        "auxiliary": auxiliary,
        "internal": internal,
        "ipv4": ipv4,
        "ipv6": ipv6,
        "options": options,
        "labels": labels,
        "ipam_driver": ipam_driver,
        "ipam_options": ipam_options,
        "scope": scope,
    }
    with progress(f"creating network {name}") as tell:
        created = call(config_of(ctx), "network.create", args, progress=tell)
    print(created["Id"])


@app.command("ls", epilog=examples("netlib network ls", "netlib network ls --filter type=custom --format '{{.Name}}'"))
@app.command("list", hidden=True)
def list_networks(
    ctx: typer.Context,
    *,
    filters: Annotated[list[str], several("--filter", "-f", metavar="KEY=VALUE", purpose=_FILTERS)],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")] = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Ids in full.")] = False,
    template: Annotated[str, typer.Option("--format", help="json, or a template like '{{.Name}}'.")] = "",
) -> None:
    """List networks."""
    rows = call(config_of(ctx), "network.ls", {"filters": filters})
    if not no_trunc:
        rows = [{**row, "ID": row["ID"][:SHORT_ID]} for row in rows]
    print_rows(rows, _COLUMNS, template, quiet="ID" if quiet else "")


@app.command(
    epilog=examples(
        "netlib network inspect web",
        "netlib network inspect -f '{{range .Containers}}{{.Name}} {{println .IPv4Address}}{{end}}' web",
    )
)
def inspect(
    ctx: typer.Context,
    networks: Names,
    *,
    template: Annotated[str, typer.Option("--format", "-f", help="json, or a template like '{{.Name}}'.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Accepted; all there is is always shown.")] = False,  # noqa: ARG001
) -> None:
    """Show networks with their members in JSON."""
    found, code = each(networks, lambda name: call(config_of(ctx), "network.inspect", {"names": [name]})[0])
    print_objects(found, template)
    raise typer.Exit(code)


@app.command(
    epilog=examples("netlib network connect web db --alias database", "netlib network connect --ip 172.28.0.10 web db")
)
def connect(
    ctx: typer.Context,
    network: Name,
    container: Container,
    *,
    ip: Annotated[str, typer.Option(metavar="IP", help="IPv4 address to have.")] = "",
    ip6: Annotated[str, typer.Option(metavar="IP", help="IPv6 address to have.")] = "",
    aliases: Annotated[list[str], several("--alias", metavar="NAME", purpose="One more name here.")],
    links: Annotated[list[str], several("--link", metavar="NAME:ALIAS", purpose="Know another container by a name.")],
    options: Annotated[list[str], several("--driver-opt", metavar="KEY=VALUE", purpose="Option of the driver.")],
    gw_priority: Annotated[int, typer.Option(help="Whose gateway is the default one: the highest's.")] = 0,
    mac: Annotated[str, typer.Option("--mac-address", metavar="MAC", help="MAC address to have.")] = "",
) -> None:
    """Join a container to a network, while it runs."""
    args = {
        "network": network,
        "container": container,
        "ip": ip,
        "ip6": ip6,
        "mac": mac,
        "aliases": aliases,
        "links": links,
        "options": options,
        "gw_priority": gw_priority,
    }
    with progress(f"connecting {container} to {network}") as tell:
        call(config_of(ctx), "network.connect", args, progress=tell)


@app.command(epilog=examples("netlib network disconnect web db"))
def disconnect(
    ctx: typer.Context,
    network: Name,
    container: Container,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="No error when it is not in it.")] = False,
) -> None:
    """Take a container out of a network, while it runs."""
    with progress(f"disconnecting {container} from {network}") as tell:
        try:
            call(config_of(ctx), "network.disconnect", {"network": network, "container": container}, progress=tell)
        except NotFound:
            if not force:
                raise


@app.command("rm", epilog=examples("netlib network rm web backend"))
@app.command("remove", hidden=True)
def remove(
    ctx: typer.Context,
    networks: Names,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="No error for a network that does not exist.")] = False,
) -> None:
    """Remove networks that nobody is in."""

    def remove_one(name: str) -> None:
        try:
            with progress(f"removing network {name}") as tell:
                call(config_of(ctx), "network.rm", {"name": name}, progress=tell)
        except NotFound:
            if not force:
                raise
        else:
            print(name)

    _, code = each(networks, remove_one)
    raise typer.Exit(code)


@app.command(epilog=examples("netlib network prune -f --filter label=project=shop"))
def prune(
    ctx: typer.Context,
    *,
    force: Force = False,
    filters: Annotated[
        list[str],
        several("--filter", metavar="KEY=VALUE", purpose="label=KEY[=VALUE], label!=KEY[=VALUE]."),
    ],
) -> None:
    """Remove all networks of yours that no container is in."""
    if not force:
        confirm("This removes all networks of yours that no container is in. Go on?")
    with progress("removing networks") as tell:
        removed = call(config_of(ctx), "network.prune", {"filters": filters}, progress=tell)["NetworksDeleted"]
    if removed:
        print("\n".join(["Deleted Networks:", *removed]))
