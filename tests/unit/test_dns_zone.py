"""Which names a network's members bear, and which of them one sandbox sees."""

from ipaddress import ip_address, ip_interface

from netlib.dns.zone import View, Zone, build_view, build_zone
from netlib.model import Endpoint, IPAddress, Link, NetnsRef, Network, ResolverConfig, Sandbox

WEB, DB, SIX = ip_address("172.18.0.2"), ip_address("172.18.0.3"), ip_address("fd00::2")


def network(name: str = "net", *, predefined: bool = False, internal: bool = False) -> Network:
    return Network(id=name * 8, name=name, driver="bridge", created=0.0, predefined=predefined, internal=internal)


def sandbox(name: str, hostname: str = "") -> Sandbox:
    return Sandbox(
        id=(name.encode().hex() * 16)[:64], name=name, created=0.0, netns=NetnsRef(""), owned=True, hostname=hostname
    )


def endpoint(*addresses: IPAddress, aliases: tuple[str, ...] = (), links: tuple[Link, ...] = ()) -> Endpoint:
    interfaces = tuple(ip_interface(f"{address}/{16 if address.version == 4 else 64}") for address in addresses)
    return Endpoint(id="e", network="n", sandbox="s", created=0.0, addresses=interfaces, aliases=aliases, links=links)


def zone(name: str, *members: tuple[str, IPAddress], predefined: bool = False, internal: bool = False) -> Zone:
    made = network(name, predefined=predefined, internal=internal)
    return build_zone(made, [(endpoint(address), sandbox(member)) for member, address in members])


def test_a_member_is_known_by_all_its_names_bare_and_with_the_network() -> None:
    box = sandbox("Web", hostname="Front")
    made = build_zone(network("Net"), [(endpoint(WEB, SIX, aliases=("www", "WWW", "api.v1")), box)])
    for name in ("web", "front", box.short_id, "www", "api.v1"):
        assert made.find(name) == (WEB, SIX), name
        assert made.find(f"{name}.net") == (WEB, SIX), name
    assert len(box.short_id) == 12
    assert made.find("net") is None
    assert made.find("other") is None
    assert made.find("web.other") is None
    assert made.find(box.id) is None


def test_one_alias_of_several_members_has_all_their_addresses() -> None:
    made = build_zone(
        network(), [(endpoint(WEB, aliases=("app",)), sandbox("a")), (endpoint(DB, aliases=("app",)), sandbox("b"))]
    )
    assert made.find("app") == (WEB, DB)
    assert made.find("a") == (WEB,)


def test_the_reverse_of_an_address_is_the_name_in_its_network() -> None:
    made = build_zone(network("Net"), [(endpoint(WEB, SIX, aliases=("x",)), sandbox("Web"))])
    assert made.pointers == {"2.0.18.172.in-addr.arpa": ("web.net",), SIX.reverse_pointer: ("web.net",)}


def test_a_member_without_an_address_is_known_and_empty() -> None:
    view = View(zones=(build_zone(network(), [(endpoint(), sandbox("web"))]),))
    assert view.find("web", 4) == ()


def test_the_first_network_that_has_the_family_wins() -> None:
    one, two = zone("one", ("web", WEB)), zone("two", ("web", DB))
    six = build_zone(network("six"), [(endpoint(SIX), sandbox("web"))])
    assert View(zones=(one, two)).find("web", 4) == (WEB,)
    assert View(zones=(two, one)).find("web", 4) == (DB,)
    assert View(zones=(one, two)).find("web.two", 4) == (DB,)
    assert View(zones=(one, six)).find("web", 6) == (SIX,)
    assert View(zones=(one,)).find("web", 6) == ()
    assert View(zones=(one,)).find("other", 6) is None


def test_names_of_other_networks_do_not_leak() -> None:
    one, two = zone("one", ("web", WEB)), zone("two", ("db", DB))
    seen = build_view([(one, endpoint(WEB))])
    assert seen.find("db", 4) is None
    assert seen.find("db.two", 4) is None
    assert seen.pointers(DB.reverse_pointer) is None
    both = build_view([(one, endpoint(WEB)), (two, endpoint(DB))])
    assert both.find("db", 4) == (DB,)
    assert both.find("web", 4) == (WEB,)
    assert both.find("web.two", 4) is None
    assert both.pointers(DB.reverse_pointer) == ("db.two",)


def test_the_default_bridge_gives_only_what_links_borrow_from_it() -> None:
    bridge = zone("bridge", ("db", DB), ("web", WEB), predefined=True)
    seen = build_view([(bridge, endpoint(WEB, links=(Link("DB", "Database"), Link("gone", "x"))))])
    assert seen.find("database", 4) == (DB,)
    assert seen.find("db", 4) is None
    assert seen.find("web", 4) is None
    assert seen.find("x", 4) is None
    assert seen.find("database.bridge", 4) is None
    assert seen.pointers(DB.reverse_pointer) is None


def test_a_link_on_a_network_of_ones_own_hides_its_names() -> None:
    net = zone("net", ("db", DB), ("other", WEB))
    seen = build_view([(net, endpoint(links=(Link("db", "other"),)))])
    assert seen.find("other", 4) == (DB,)
    assert seen.find("other.net", 4) == (DB,)
    assert build_view([(net, endpoint())]).find("other", 4) == (WEB,)


def test_only_internal_networks_lead_nowhere() -> None:
    inside, outside = zone("in", internal=True), zone("out")
    assert not build_view([(inside, endpoint())]).forwards
    assert not build_view([]).forwards
    assert build_view([(inside, endpoint()), (outside, endpoint())]).forwards


def test_the_sandboxs_own_servers_are_in_its_view() -> None:
    assert build_view([(zone("net"), endpoint())], ResolverConfig(servers=(DB,))).servers == (DB,)
    assert build_view([(zone("net"), endpoint())]).servers == ()
