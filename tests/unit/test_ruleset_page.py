"""The page of the ruleset as text: what is put in order, what is replaced, and that nothing is left out."""

import pytest

from tests.ruleset_page import filled, listings, stable

LISTING = """\
table inet netlib {
\tset bridges {
\t\ttype ifname
\t\telements = { "br-web" comment "netlib:1a2b3c:0123456789ab",
\t\t\t     "br-db" comment "netlib:1a2b3c:ba9876543210" }
\t}

\tset open {
\t\ttype ifname
\t}

\tchain forward {
\t\tjump user comment "yours first (f8053b2d)"
\t\tiifname "veth0123456" drop
\t}
}
"""
PAGE = """\
## Table `inet netlib`

### Sets and maps

Networks.

```
old
```

### Chain `forward`

Packets.

```
```
"""
FOUND = {
    ("inet netlib", "Sets and maps"): (
        "set bridges {\n    type ifname\n    elements = {\n"
        '        "br-db" comment "netlib:<store>:<record>",\n        "br-web" comment "netlib:<store>:<record>",\n    }\n}\n'
        "# without entries here: open\n"
    ),
    ("inet netlib", "forward"): (
        'chain forward {\n    jump user comment "yours first (<digest>)"\n    iifname "<veth of shop>" drop\n}\n'
    ),
}


def test_a_listing_is_the_same_on_every_host() -> None:
    assert dict(listings(stable(LISTING, {"veth0123456": "<veth of shop>"}))) == FOUND


def test_listings_are_put_under_their_headings() -> None:
    page = filled(PAGE, FOUND)
    sets, forward = FOUND.values()
    assert page == PAGE.replace("old\n", sets).replace("Packets.\n\n```\n", f"Packets.\n\n```\n{forward}")
    assert filled(page, FOUND) == page


@pytest.mark.parametrize("found", [{**FOUND, ("inet netlib", "late"): ""}, {("inet netlib", "forward"): ""}, {}])
def test_a_heading_for_each_listing_and_a_listing_for_each_heading(found: dict[tuple[str, str], str]) -> None:
    with pytest.raises(
        LookupError, match=r"ruleset\.md has no section for what is loaded, or one for what is not: inet netlib "
    ):
        filled(PAGE, found)
