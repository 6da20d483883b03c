"""``docs/ruleset.md`` shows what the kernel has: the page is compared with one that is made now."""

from difflib import unified_diff

from netlib.config import Config
from tests.ruleset_page import PAGE, page


def test_the_page_shows_the_ruleset_that_is_loaded(config: Config) -> None:
    kept, fresh = PAGE.read_text().splitlines(), page(config).splitlines()
    differing = "\n".join(unified_diff(kept, fresh, "docs/ruleset.md", "what is loaded", lineterm="", n=1))
    assert not differing, f"docs/ruleset.md is not what is loaded: run `make docs`, and read what it changes\n{differing}"
