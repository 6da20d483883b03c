"""``netlib explain``, ``check``, ``log``, ``info``, ``version`` and ``netlib system …``: looking behind it, and clearing up."""

from datetime import datetime
from typing import Annotated, Any

import typer

from netlib.cli.render import confirm, print_objects, progress
from netlib.cli.typed import application, config_of, examples
from netlib.client import call

app = application("Looking behind it.")
system = application("This netlib as a whole.")

Thing = Annotated[str, typer.Argument(metavar="NETWORK|CONTAINER", help="Name or id.")]
Template = Annotated[str, typer.Option("--format", "-f", help="json, or a template.")]


@app.command(epilog=examples("netlib explain bridge", "netlib explain --format json web"))
def explain(ctx: typer.Context, name: Thing, *, template: Template = "") -> None:
    """Print the ip, sysctl and nft commands that amount to a network or a container."""
    objects = call(config_of(ctx), "explain", {"name": name})
    if template:
        print_objects(objects, template)
        return
    for item in objects:
        for line in item["Commands"]:
            print(line)


@app.command(epilog=examples("netlib check web"))
def check(ctx: typer.Context, name: Thing, *, template: Template = "") -> None:
    """Compare a network or a container with the kernel; exit code 1 when they differ."""
    found = call(config_of(ctx), "check", {"name": name})
    if template:
        print_objects(found, template)
    else:
        for item in found:
            print(f"{item['Object']}: {item['Drift']}")
    raise typer.Exit(1 if found else 0)


@app.command(epilog=examples("netlib log -n 5 -v"))
def log(
    ctx: typer.Context,
    *,
    number: Annotated[int, typer.Option("--number", "-n", help="How many operations, the last ones.")] = 50,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Name all objects made (+) and removed (-).")] = False,
    template: Template = "",
) -> None:
    """Show what netlib did, one line per operation, the latest last."""
    entries = call(config_of(ctx), "log", {"limit": number})
    if template:
        print_objects(entries, template)
        return
    for entry in entries:
        objects = entry["Objects"]
        moment = datetime.fromisoformat(entry["Time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        count = f"{len(objects)} object{'' if len(objects) == 1 else 's'}"
        print(
            f"{moment}  {entry['Operation']}  {entry['Subject']}  {entry['Outcome']}  {entry['Seconds'] * 1000:.1f} ms  {count}"
        )
        for item in objects if verbose else ():
            print(f"    {item}")


@app.command(epilog=examples("netlib info --format '{{.StateDir}}'"))
@system.command("info", epilog=examples("netlib info --format '{{.StateDir}}'"))
def info(ctx: typer.Context, *, template: Template = "") -> None:
    """Show what there is, and where."""
    _print_facts(call(config_of(ctx), "system.info", {}), template)


@app.command(epilog=examples("netlib version --format json"))
def version(ctx: typer.Context, *, template: Template = "") -> None:
    """Print the version."""
    _print_facts(call(config_of(ctx), "version", {}), template)


@system.command(epilog=examples("netlib system reset -f"))
def reset(ctx: typer.Context, *, force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask.")] = False) -> None:
    """Remove every container, network and firewall rule that netlib made, and put changed sysctls back."""
    if not force:
        confirm("This stops and removes every container and network that netlib made. Go on?")
    with progress("removing everything") as tell:
        call(config_of(ctx), "system.reset", {}, progress=tell)


def _print_facts(facts: dict[str, Any], template: str) -> None:
    if template:
        print_objects([facts], template)
        return
    for key, value in facts.items():
        print(f"{key}: {value}")
