"""The resolver at the gateways of networks, for members whose netns is not ours: a CNI runtime's or a Python program's.

A member (a *guest* of the gateway) is recognised by its source address, and gets the answers that it would get at 127.0.0.11 in
a netns of ours. The kernel drops queries from a guest's address that another bridge port than the guest's received
(:mod:`netlib.firewall.guests`), so a limit per address is a limit per port.
"""

import logging
import socket
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

from netlib.core.sandbox_plan import Seat
from netlib.dns.server import DnsServer
from netlib.dns.zone import View
from netlib.errors import Conflict, NetlibError
from netlib.firewall.guests import Guest, GuestTable
from netlib.model import HOST, IPAddress

__all__ = ["Gateways"]

PORT = 53

logger = logging.getLogger(__name__)


class _Gateway(NamedTuple):
    """A gateway's address on a link of the host."""

    network: str
    address: IPAddress
    link: str

    @property
    def name(self) -> str:
        """The gateway's name at the DNS server."""
        return f"{self.network} {self.address}"


class Gateways:
    """Serves each gateway as long as a sandbox has a seat (an address that may ask) there; used by one thread at a time."""

    def __init__(self, dns: DnsServer) -> None:
        self._dns = dns
        self._seats: dict[str, tuple[frozenset[Seat], View]] = {}  # by sandbox
        # The sandbox that a client's address at a gateway belongs to. It is compared before an address is dismissed: another
        # sandbox may get an address before netlibd is told that the former one has left.
        self._holders: dict[tuple[_Gateway, IPAddress], str] = {}
        self._users: Counter[_Gateway] = Counter()
        self._open: dict[_Gateway, int] = {}  # with the index of the link that it was opened on
        self._table = GuestTable()
        self._has_warned = False  # that the kernel does not compare guests' ports

    def seat(self, sandbox: str, seats: Collection[Seat], view: View) -> None:
        """Give *sandbox* these *seats* and no others, and answer it by *view* at each.

        A failure does not stop the rest. The first failure is raised at the end, and :meth:`retry` tries again.
        """
        old, new = self._seats.pop(sandbox, (frozenset[Seat](), None))[0], frozenset(seats)
        if new:
            self._seats[sandbox] = (new, view)
        self._users.update(map(_gateway, new - old))
        for seat in old - new:
            self._leave(sandbox, seat)
        self._holders.update(((_gateway(seat), seat.client), sandbox) for seat in new)
        self._filter_guests(set(map(_guest, old - new)), set(map(_guest, new)))
        failures: list[NetlibError] = []
        for seat in new:
            try:
                self._serve(_gateway(seat))
            except NetlibError as error:
                failures.append(error)
        self._admit(sandbox, new, view)
        if failures:
            raise failures[0]

    def unseat(self, sandbox: str) -> None:
        """Take all seats of *sandbox* away; a no-op when it has none."""
        if sandbox in self._seats:
            self.seat(sandbox, (), View())

    def publish(self, sandbox: str, view: View) -> None:
        """Answer *sandbox* by *view* at its seats; a no-op when it has none."""
        if sandbox in self._seats:
            seats, _ = self._seats[sandbox]
            self._seats[sandbox] = (seats, view)
            self._admit(sandbox, seats, view)

    def retry(self) -> None:
        """Open gateways that could not be opened before, or whose link was deleted and made again."""
        for gateway in self._users:
            with suppress(NetlibError):  # reported when it failed for the first time
                self._serve(gateway)
        guests = {_guest(seat) for seats, _ in self._seats.values() for seat in seats}
        self._filter_guests(self._table.guests - guests, guests)

    def close(self) -> None:
        """Delete the firewall table of guests. Queries are answered until the DNS server is closed."""
        self._table.close()

    def _admit(self, sandbox: str, seats: Iterable[Seat], view: View) -> None:
        for seat in seats:
            self._dns.admit(_gateway(seat).name, seat.client, sandbox, view)

    def _leave(self, sandbox: str, seat: Seat) -> None:
        gateway = _gateway(seat)
        if self._holders.get((gateway, seat.client)) == sandbox:
            del self._holders[gateway, seat.client]
            self._dns.dismiss(gateway.name, seat.client)
        self._users[gateway] -= 1
        if not self._users[gateway]:
            del self._users[gateway]
            self._close(gateway)

    def _filter_guests(self, leaving: Collection[Guest], joining: Collection[Guest]) -> None:
        """Have the kernel drop queries from a guest's address by another port; names are answered also where it cannot."""
        try:
            self._table.change(leaving, joining)
        except NetlibError as error:
            if not self._has_warned:
                logger.warning("a member can use up another's share of queries to a gateway by forging its address: %s", error)
            self._has_warned = True

    def _serve(self, gateway: _Gateway) -> None:
        """Answer queries at *gateway*; a no-op where that is done on the link which has its name now."""
        index = _index(gateway.link)
        if self._open.get(gateway, 0) == index != 0:
            return
        self._close(gateway)
        if self._dns.serve(gateway.name, HOST, PORT, address=gateway.address, device=gateway.link) != PORT:
            self._dns.withdraw(gateway.name)
            raise Conflict(
                f"port {PORT} of {gateway.address} is taken, so names cannot be answered on {gateway.link}; "
                "let the host's name server listen on its own addresses only"
            )
        self._open[gateway] = index
        for sandbox, (seats, view) in self._seats.items():
            self._admit(sandbox, (seat for seat in seats if _gateway(seat) == gateway), view)

    def _close(self, gateway: _Gateway) -> None:
        if self._open.pop(gateway, None) is not None:
            self._dns.withdraw(gateway.name)


def _gateway(seat: Seat) -> _Gateway:
    return _Gateway(seat.network, seat.gateway, seat.link)


def _guest(seat: Seat) -> Guest:
    return Guest(seat.gateway, seat.client, seat.port)


def _index(ifname: str) -> int:
    """Return the index of a link, 0 where there is none of that name."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return 0
