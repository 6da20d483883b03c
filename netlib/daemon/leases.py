"""DHCP leases of containers, renewed for as long as they are written down.

One rule: what is to be renewed, and when, follows from the store alone, so a netlibd that was away goes on where another left.
A lease is renewed at its server after its first half, then at any server, as RFC 2131 (4.4.5) asks. One that is over, or that
the server takes back, is used no longer: the container's link goes down.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from msgspec.structs import replace

from ipam.dhcp import Kind, Message, terms_of
from ipam.dhcp_client import Conversation, DhcpLease, now
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller
from netlib.daemon.servants import Change
from netlib.dns.loop import Loop, Timer
from netlib.errors import NetlibError, ObjectMissing
from netlib.kernel.links import LinkUp

__all__ = ["DhcpLeases"]

_ANSWER_SECONDS = 4.0  # an open socket keeps a container's netns from ending
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 64.0  # between attempts, doubled each time

logger = logging.getLogger(__name__)


class _Held:
    """A lease that is looked after."""

    def __init__(self, lease: DhcpLease) -> None:
        self.lease = lease
        self.pause = _FIRST_PAUSE
        self.asked = 0.0
        self.timer: Timer | None = None
        self.conversation: Conversation | None = None


class DhcpLeases:
    """The servant that renews the leases of a store; each thread that looks at it gets a controller by *make_controller*."""

    name = "dhcp leases"

    def __init__(self, make_controller: Callable[[], Controller]) -> None:
        self._make_controller = make_controller
        self._held: dict[str, _Held] = {}  # by record; the loop's own
        self._loop: Loop | None = None  # not every host has such leases

    def reload(self) -> None:
        """Look at the store again."""
        with self._make_controller().store.read() as tx:
            found = {record: item for record, item in tx.ready_objects("dhcp_lease", "host") if isinstance(item, DhcpLease)}
        if found and self._loop is None:
            self._loop = Loop("netlibd-dhcp")
        if self._loop is not None:
            self._loop.post(self._guarded(lambda: self._look_after(found)))

    def start(self) -> None:
        """Look after the leases that there are."""
        self.reload()

    def changed(self, change: Change) -> tuple[NetlibError, ...]:
        """Nothing: leases are those of attachments, and the keeper has them read again when the store has changed."""
        return ()

    def health(self) -> str | None:
        """Which lease no server renews."""
        late = [held.lease for held in list(self._held.values()) if held.pause > _FIRST_PAUSE]
        return f"the DHCP lease of {late[0].address.ip} in {late[0].netns.label} is not renewed" if late else None

    def stop(self) -> None:
        """End the thread; the leases stay."""
        if self._loop is not None:
            self._loop.call(lambda: self._look_after({}))
            self._loop.stop()

    def _guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                action()
            except NetlibError as error:
                logger.warning("%s", error)
            except Exception:  # one lease's bug must not end the others
                logger.exception("looking after DHCP leases failed")

        return run

    def _look_after(self, found: Mapping[str, DhcpLease]) -> None:
        for record in self._held.keys() - found.keys():
            self._drop(record)
        for record, lease in found.items():
            held = self._held.get(record)
            if held is None or (held.lease != lease and held.lease.since <= lease.since):  # else it was renewed since the look
                self._hold(record, lease)

    @property
    def _the_loop(self) -> Loop:
        assert self._loop is not None, "leases are looked after in its thread"
        return self._loop

    def _hold(self, record: str, lease: DhcpLease) -> None:
        self._drop(record)
        held = self._held[record] = _Held(lease)
        if lease.lease is not None:
            self._do_in(lease.since + lease.renewal - now(), record, held, self._renew)

    def _do_in(self, seconds: float, record: str, held: _Held, task: Callable[[str, _Held], None]) -> None:
        held.timer = self._the_loop.after(max(0.0, seconds), self._guarded(lambda: task(record, held)))

    def _drop(self, record: str) -> None:
        held = self._held.pop(record, None)
        if held is not None:
            self._hang_up(held)

    def _hang_up(self, held: _Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
        if held.conversation is not None:
            self._the_loop.forget(held.conversation.fileno())
            held.conversation.close()
            held.conversation = None

    # --- renewing ------------------------------------------------------------------------------------------------------

    def _renew(self, record: str, held: _Held) -> None:
        held.asked = now()
        self._do_in(_ANSWER_SECONDS, record, held, self._try_again)
        try:
            with self._make_controller().engine.kernel(record) as kernel:
                held.conversation = held.lease.conversation(kernel)
        except ObjectMissing as error:  # the record goes when the runtime says so; nobody has the address by then
            self._hang_up(held)
            logger.info("a DHCP lease is not renewed any more: %s", error)
            return
        hear = self._guarded(lambda: self._hear(record, held))
        self._the_loop.watch(held.conversation.fileno(), lambda _: hear())
        held.conversation.renew(held.lease)

    def _hear(self, record: str, held: _Held) -> None:
        if held.conversation is None:
            return
        for answer in held.conversation.answers():
            if self._is_granted(answer, held):
                self._go_on(record, held, answer)
                return
            if answer.kind is Kind.NAK and answer.server == held.lease.server:
                self._end(held, f"was taken back by {answer.server}")
                return

    @staticmethod
    def _is_granted(answer: Message, held: _Held) -> bool:
        """Whether the server goes on, or another one does when its time has come."""
        lease = held.lease
        is_rebinding = held.asked >= lease.since + lease.rebinding
        return (
            answer.kind is Kind.ACK
            and answer.yours == lease.address.ip
            and answer.server is not None
            and (is_rebinding or answer.server == lease.server)
        )

    def _go_on(self, record: str, held: _Held, answer: Message) -> None:
        terms = terms_of(answer)
        self._hang_up(held)
        lease = replace(held.lease, since=held.asked)
        if terms is not None:
            lease = replace(lease, server=terms.server, lease=terms.lease, renewal=terms.renewal, rebinding=terms.rebinding)
        if Attachments(self._make_controller()).revise(record, lease):
            self._hold(record, lease)
            logger.debug("the DHCP lease of %s was renewed by %s", lease.address.ip, lease.server)

    def _try_again(self, record: str, held: _Held) -> None:
        self._hang_up(held)
        lease = held.lease
        assert lease.lease is not None
        if lease.is_over:
            self._end(held, "is over, and no server answered")
            return
        left = lease.since + lease.lease - now()
        self._do_in(min(held.pause, left), record, held, self._renew)
        held.pause = min(2 * held.pause, _LONGEST_PAUSE)

    def _end(self, held: _Held, how: str) -> None:
        """The address may be somebody else's by now. As the reference's daemon does, let the container use it no longer."""
        self._hang_up(held)
        lease = held.lease
        logger.warning("%s in %s goes down: its DHCP lease of %s %s", lease.link, lease.netns.label, lease.address.ip, how)
        with suppress(ObjectMissing), self._make_controller().engine.kernel("") as kernel:
            LinkUp(ifname=lease.link, netns=lease.netns).remove(kernel)
