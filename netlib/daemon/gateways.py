"""The resolver at the gateways of networks, for members whose netns is somebody else's: CNI's, or a Python program's.

One rule: who asks is told by the address that it asks from, and sees what it would see at 127.0.0.11 in a netns of ours. The
kernel drops a question from a guest's address by another bridge port than the guest's (:mod:`netlib.firewall.guests`), so what
is accounted by address is accounted by port.
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


class _Place(NamedTuple):
    """A gateway's address on a link of the host."""

    network: str
    address: IPAddress
    link: str

    @property
    def name(self) -> str:
        """As the server knows it."""
        return f"{self.network} {self.address}"


class Gateways:
    """Serves gateways as long as somebody has a seat there; used by one thread at a time."""

    def __init__(self, dns: DnsServer) -> None:
        self._dns = dns
        self._seats: dict[str, tuple[frozenset[Seat], View]] = {}  # by sandbox
        # By place and client, the last sandbox that took it: an address is given to another sandbox before the first has left.
        self._holders: dict[tuple[_Place, IPAddress], str] = {}
        self._users: Counter[_Place] = Counter()
        self._open: dict[_Place, int] = {}  # with the index of the link that it was opened on
        self._table = GuestTable()
        self._is_told = False  # that the kernel does not tell guests apart by port

    def seat(self, sandbox: str, seats: Collection[Seat], view: View) -> None:
        """Let *sandbox* have these *seats* and no others, and see *view* at each.

        All of it is tried; the first failure is raised afterwards, and :meth:`retry` tries again.
        """
        old, new = self._seats.pop(sandbox, (frozenset[Seat](), None))[0], frozenset(seats)
        if new:
            self._seats[sandbox] = (new, view)
        self._users.update(map(_place, new - old))
        for seat in old - new:
            self._leave(sandbox, seat)
        self._holders.update(((_place(seat), seat.client), sandbox) for seat in new)
        self._tell_apart(set(map(_guest, old - new)), set(map(_guest, new)))
        failures: list[NetlibError] = []
        for seat in new:
            try:
                self._serve(_place(seat))
            except NetlibError as error:
                failures.append(error)
        self._admit(sandbox, new, view)
        if failures:
            raise failures[0]

    def unseat(self, sandbox: str) -> None:
        """Let *sandbox* have no seat; a no-op when it has none."""
        if sandbox in self._seats:
            self.seat(sandbox, (), View())

    def publish(self, sandbox: str, view: View) -> None:
        """Let *sandbox* see *view* at its seats; a no-op when it has none."""
        if sandbox in self._seats:
            seats, _ = self._seats[sandbox]
            self._seats[sandbox] = (seats, view)
            self._admit(sandbox, seats, view)

    def retry(self) -> None:
        """Serve what could not be served, or was served on a link that is another one by now."""
        for place in self._users:
            with suppress(NetlibError):  # it was told when it failed first
                self._serve(place)
        guests = {_guest(seat) for seats, _ in self._seats.values() for seat in seats}
        self._tell_apart(self._table.guests - guests, guests)

    def close(self) -> None:
        """Remove what the kernel compares; who asks is answered as long as the server is."""
        self._table.close()

    def _admit(self, sandbox: str, seats: Iterable[Seat], view: View) -> None:
        for seat in seats:
            self._dns.admit(_place(seat).name, seat.client, sandbox, view)

    def _leave(self, sandbox: str, seat: Seat) -> None:
        place = _place(seat)
        if self._holders.get((place, seat.client)) == sandbox:
            del self._holders[place, seat.client]
            self._dns.dismiss(place.name, seat.client)
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self._close(place)

    def _tell_apart(self, leaving: Collection[Guest], joining: Collection[Guest]) -> None:
        """Have the kernel drop questions from a guest's address by another port; where it cannot, names are served anyway."""
        try:
            self._table.change(leaving, joining)
        except NetlibError as error:
            if not self._is_told:
                logger.warning("a member can spend another's share of questions at a gateway, by its address: %s", error)
            self._is_told = True

    def _serve(self, place: _Place) -> None:
        """See that *place* is served, on the link that has that name now."""
        index = _index(place.link)
        if self._open.get(place, 0) == index != 0:
            return
        self._close(place)
        if self._dns.serve(place.name, HOST, PORT, address=place.address, device=place.link) != PORT:
            self._dns.withdraw(place.name)
            raise Conflict(
                f"port {PORT} of {place.address} is taken, so names cannot be answered on {place.link}; "
                "let the host's name server listen on its own addresses only"
            )
        self._open[place] = index
        for sandbox, (seats, view) in self._seats.items():
            self._admit(sandbox, (seat for seat in seats if _place(seat) == place), view)

    def _close(self, place: _Place) -> None:
        if self._open.pop(place, None) is not None:
            self._dns.withdraw(place.name)


def _place(seat: Seat) -> _Place:
    return _Place(seat.network, seat.gateway, seat.link)


def _guest(seat: Seat) -> Guest:
    return Guest(seat.gateway, seat.client, seat.port)


def _index(ifname: str) -> int:
    """The number of a link, 0 where there is none."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return 0
