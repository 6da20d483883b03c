"""The first lab: networks, names, a published port and masquerade on one host; it prints each check with its result.

Run it by ``make demo``. In a test host (``netlib/testing/testhost``) it builds this topology and removes it again::

    neighbour ── (192.0.2.0/24) ── host ─┬─ alpine-net: web, client, both
                                          └─ bridge:     loner, both

The neighbour is another machine on the host's LAN, and stands for the Internet behind it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NEIGHBOUR = "neighbour"
HOST_ADDRESS, NEIGHBOUR_ADDRESS = "192.0.2.1", "192.0.2.2"
TIMEOUT_SECONDS = 20

_failed: list[str] = []


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one command and return its result; TimeoutExpired when it takes more than 20 seconds."""
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)


def netlib(*arguments: str) -> str:
    """Print and run a netlib command and return its output; end the demo when it fails."""
    print(f"$ netlib {' '.join(arguments)}", flush=True)
    result = run(sys.executable, "-m", "netlib", *arguments)
    if result.returncode != 0:
        raise SystemExit(f"  failed with {result.returncode}: {result.stderr.strip()}")
    return result.stdout.strip()


def inside(container: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a container."""
    return run(sys.executable, "-m", "netlib", "exec", container, *command)


def at_neighbour(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the neighbour machine."""
    return run("ip", "netns", "exec", NEIGHBOUR, *command)


def check(what: str, holds: bool) -> None:
    """Print one check and its result."""
    print(f"  {'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        _failed.append(what)


def pings(container: str, target: str, seconds: int = 2) -> bool:
    """Whether one ping from a container is answered within *seconds*."""
    return inside(container, "ping", "-c1", f"-W{seconds}", target).returncode == 0


def fetches(fetch: Callable[..., subprocess.CompletedProcess[str]], url: str) -> bool:
    """Whether the page at *url* is had within two seconds by *fetch*, which runs a command somewhere."""
    return fetch("curl", "--silent", "--fail", "--max-time", "2", "--output", "/dev/null", url).returncode == 0


@contextmanager
def neighbour() -> Iterator[None]:
    """Make the neighbour machine, a netns with a veth pair to the host, and remove it after the block."""
    commands = (
        f"ip netns add {NEIGHBOUR}",
        f"ip link add uplink type veth peer name eth0 netns {NEIGHBOUR}",
        f"ip addr add {HOST_ADDRESS}/24 dev uplink",
        "ip link set uplink up",
        f"ip -n {NEIGHBOUR} addr add {NEIGHBOUR_ADDRESS}/24 dev eth0",
        f"ip -n {NEIGHBOUR} link set eth0 up",
        f"ip -n {NEIGHBOUR} link set lo up",
    )
    for command in commands:
        subprocess.run(command.split(), check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NEIGHBOUR], check=True)


def build() -> None:
    """Make one network and four containers; the fourth is also connected to the default network."""
    netlib("network", "create", "alpine-net")
    netlib("run", "-d", "--name", "web", "--network", "alpine-net", "-p", "8080:80", "python3", "-m", "http.server", "80")
    netlib("run", "-d", "--name", "client", "--network", "alpine-net", "--network-alias", "customer", "sleep", "1000")
    netlib("run", "-d", "--name", "loner", "--dns-option", "timeout:1", "--dns-option", "attempts:1", "sleep", "1000")
    netlib("run", "-d", "--name", "both", "--network", "alpine-net", "sleep", "1000")
    netlib("network", "connect", "bridge", "both")


def address_of(container: str, network: str) -> str:
    """Return a container's IPv4 address in a network, from the output of ``network inspect``."""
    members = json.loads(netlib("network", "inspect", network))[0]["Containers"].values()
    return next(str(member["IPv4Address"]).split("/")[0] for member in members if member["Name"] == container)


def check_all() -> None:
    """Check what must be reachable and what must not be."""
    web, loner = address_of("web", "alpine-net"), address_of("loner", "bridge")
    gateway = web.rsplit(".", 1)[0] + ".1"
    print("names")
    check("client reaches web by name", pings("client", "web"))
    check("client reaches web by name and network", pings("client", "web.alpine-net"))
    check("web reaches client by its alias", pings("web", "customer"))
    check("web reaches itself by name", pings("web", "web"))
    check("an unknown name is refused", not pings("client", "nobody"))
    check("the default network resolves no names", not pings("loner", "both"))
    check("ip netns exec resolves too", run("ip", "netns", "exec", "client", "ping", "-c1", "-W2", "web").returncode == 0)
    print("isolation")
    check("client does not reach loner in the other network", not pings("client", loner, seconds=1))
    check("both, in both networks, reaches loner by address", pings("both", loner))
    check("loner does not reach web", not pings("loner", web, seconds=1))
    print("published port 8080:80")
    check("from the host by 127.0.0.1", fetches(run, "http://127.0.0.1:8080/"))
    check("from the neighbour by the host's address", fetches(at_neighbour, f"http://{HOST_ADDRESS}:8080/"))
    check("from web itself through the host", fetches(lambda *c: inside("web", *c), f"http://{gateway}:8080/"))
    print("masquerade")
    check("client reaches the outside, which has no route back to it", pings("client", NEIGHBOUR_ADDRESS))
    print("closed doors")
    run("ip", "-n", NEIGHBOUR, "route", "add", f"{web}/32", "via", HOST_ADDRESS)
    check("not the container's own port from outside", not fetches(at_neighbour, f"http://{web}:80/"))


def tear_down() -> None:
    """Remove everything, and check that nothing is left."""
    print("removal")
    netlib("rm", "-f", "web", "client", "loner", "both")
    netlib("network", "rm", "alpine-net")
    netlib("system", "reset", "-f")
    links = [link["ifname"] for link in json.loads(run("ip", "-j", "link").stdout)]
    check(f"no link of ours is left (there are: {', '.join(links)})", set(links) == {"lo", "uplink"})
    check("no rule of ours is left", "netlib" not in run("nft", "list", "ruleset").stdout)
    check("forwarding is off again", run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "0")


def main() -> int:
    """Build the topology, check it, and remove it; return 1 when a check failed."""
    with neighbour():
        build()
        check_all()
        tear_down()
    print(f"{len(_failed)} checks failed" if _failed else "all checks passed")
    return 1 if _failed else 0


if __name__ == "__main__":
    sys.exit(main())
