"""Network namespaces: made, recognised, entered and left on every path, removed."""

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from netlib.errors import AlreadyExists, NetlibError, ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.kernel.netns import NETNS_DIR, command_in, create_netns, current_identity, delete_netns, entered, identity_of_path
from netlib.kernel.owned_netns import OwnedNetns
from netlib.model import HOST, NetnsRef
from tests.descriptors import open_descriptors


@pytest.fixture
def web(netns_factory: Callable[[str], NetnsRef]) -> NetnsRef:
    return netns_factory("web")


def here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_entered_and_left(web: NetnsRef) -> None:
    home, identity = here(), current_identity()
    with entered(web):
        assert here() != home
        assert current_identity() == web.identity
    assert (here(), current_identity()) == (home, identity)


def fail_away_from(home: str) -> None:
    assert here() != home
    raise ZeroDivisionError


def test_thread_comes_home_when_the_body_raises(kernel: Kernel, web: NetnsRef) -> None:
    home = here()
    for enter in (entered, kernel.entered):
        with pytest.raises(ZeroDivisionError), enter(web):
            fail_away_from(home)
        assert here() == home


def test_other_threads_stay_where_they_are(web: NetnsRef) -> None:
    home, seen = here(), []
    looked = threading.Event()
    inside = threading.Event()

    def look() -> None:
        inside.wait(10)
        seen.append(here())
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    with entered(web):
        inside.set()
        assert looked.wait(10)
    thread.join()
    assert seen == [home]


def test_entered_twice_is_left_twice(web: NetnsRef) -> None:
    home = here()
    with entered(web):
        with entered(web):
            assert current_identity() == web.identity
        assert current_identity() == web.identity
    assert here() == home


@pytest.mark.parametrize("what", ["gone", "file", "folder", "replaced"])
def test_what_is_not_the_netns_any_more_is_not_entered(kernel: Kernel, web: NetnsRef, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    netns = NetnsRef(web.path if what == "replaced" else str(tmp_path / what), "123456789abc:1")
    home = here()
    for enter in (entered, kernel.entered):
        with pytest.raises(ObjectMissing), enter(netns):
            pytest.fail("entered")
        assert here() == home
    with pytest.raises(ObjectMissing):
        kernel.rtnl(netns)


def test_conversations_stay_with_their_netns(kernel: Kernel, web: NetnsRef) -> None:
    subprocess.run(["ip", "-n", web.label, "link", "add", "only-here", "type", "bridge"], check=True)
    assert kernel.rtnl(web).find_link("only-here") is not None
    assert [link.get("IFLA_IFNAME") for link in kernel.rtnl(web).raw.get_links()] == ["lo", "only-here"]
    assert kernel.rtnl(HOST).find_link("only-here") is None


def test_handle_leaves_no_descriptor_and_pins_no_netns(web: NetnsRef) -> None:
    before = open_descriptors()
    with Kernel() as kernel:
        for netns in (web, HOST, NetnsRef(web.path)):
            kernel.rtnl(netns).raw.get_links()
            kernel.netns_fd(netns)
        assert len(open_descriptors()) > len(before)
        kernel.forget(web)
    assert open_descriptors() == before


def test_owned_netns_comes_and_goes(kernel: Kernel) -> None:
    made = kernel.new_netns(str(NETNS_DIR / "owned"))
    owned = OwnedNetns(path=made.path, identity=made.identity)
    assert "is missing" in str(owned.drift(kernel))
    try:
        owned.ensure(kernel)
        kernel.close()  # from here on its path alone keeps it
        owned.ensure(kernel)
        assert identity_of_path(owned.path) == made.identity
        assert owned.drift(kernel) is None
        listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
        assert "owned" in listed
        kernel.rtnl(made).links()
    finally:
        owned.remove(kernel)
    owned.remove(kernel)
    assert not Path(owned.path).exists()
    with pytest.raises(ObjectMissing):
        kernel.rtnl(made)
    with pytest.raises(ObjectMissing):
        owned.ensure(kernel)


def test_owned_netns_is_not_another_one_at_its_path(kernel: Kernel, web: NetnsRef) -> None:
    owned = OwnedNetns(path=web.path, identity=kernel.new_netns(web.path).identity)
    assert owned.drift(kernel) == f"another network namespace is at {web.path}"
    with pytest.raises(AlreadyExists, match=web.path):
        owned.ensure(kernel)
    owned.remove(kernel)
    assert identity_of_path(web.path) == web.identity


def test_a_file_that_a_crash_left_is_replaced(kernel: Kernel) -> None:
    made = kernel.new_netns(str(NETNS_DIR / "half"))
    owned = OwnedNetns(path=made.path, identity=made.identity)
    Path(owned.path).touch()
    assert "is missing" in str(owned.drift(kernel))
    try:
        owned.ensure(kernel)
        assert owned.drift(kernel) is None
    finally:
        owned.remove(kernel)


def test_name_that_is_taken_is_refused_and_left(web: NetnsRef) -> None:
    with pytest.raises(NetlibError, match="create network namespace"):
        create_netns(Path(web.path))
    assert identity_of_path(web.path) == web.identity


def test_path_used_again_is_another_netns() -> None:
    path = NETNS_DIR / "again"
    identities = set()
    try:
        for _ in range(3):
            create_netns(path)
            identities.add(identity_of_path(str(path)))
            delete_netns(path)
    finally:
        delete_netns(path)
    assert len(identities) == 3


def test_commands_run_where_the_objects_are(web: NetnsRef) -> None:
    for command in ("ip link show lo", "sysctl -n net/ipv4/ip_forward"):
        for netns in (web, NetnsRef(f"{NETNS_DIR}/../netns/{web.label}")):
            subprocess.run(command_in(netns, command).split(), check=True, capture_output=True)
    assert command_in(HOST, "ip link") == "ip link"
