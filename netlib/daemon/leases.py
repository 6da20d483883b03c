"""Renewing the DHCP leases of containers while their records exist.

One rule: which leases are renewed, and when, is computed from the store alone, so a new netlibd continues where the former one
ended. A lease is renewed at its server after half of its time (T1), later at any server (T2), as RFC 2131, 4.4.5, asks. When a
lease expires or its server answers with a DHCPNAK, the container must not use the address: its link is set down.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from msgspec.structs import replace

from ipam.dhcp import Kind, Message, terms_of
from ipam.dhcp_client import Conversation, DhcpLease, now
from netlib.core.attachments import Attachments
from netlib.core.controller import Controller
from netlib.daemon.servants import ChangedRecords
from netlib.dns.loop import Loop, Timer
from netlib.errors import NetlibError, ObjectMissing
from netlib.kernel.links import LinkUp

__all__ = ["DhcpLeases"]

_ANSWER_SECONDS = 4.0  # short, because the open socket would keep the netns of an ended container
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 64.0  # between attempts, doubled each time

logger = logging.getLogger(__name__)


class _RenewedLease:
    """One lease with its timer and, while it is being renewed, its conversation with the server."""

    def __init__(self, lease: DhcpLease) -> None:
        self.lease = lease
        self.pause = _FIRST_PAUSE
        self.asked = 0.0
        self.timer: Timer | None = None
        self.conversation: Conversation | None = None


class DhcpLeases:
    """The servant that renews the leases of a store. *make_controller* returns a controller for the calling thread."""

    name = "dhcp leases"

    def __init__(self, make_controller: Callable[[], Controller]) -> None:
        self._make_controller = make_controller
        self._held: dict[str, _RenewedLease] = {}  # by record id; used by the loop's thread only
        self._loop: Loop | None = None  # started with the first lease

    def reload(self) -> None:
        """Read the leases from the store again, and renew those that it has."""
        with self._make_controller().store.read() as tx:
            found = {record: item for record, item in tx.ready_objects("dhcp_lease", "host") if isinstance(item, DhcpLease)}
        if found and self._loop is None:
            self._loop = Loop("netlibd-dhcp")
        if self._loop is not None:
            self._loop.post(self._guarded(lambda: self._replace_leases(found)))

    def start(self) -> None:
        """Begin to renew the leases in the store."""
        self.reload()

    def changed(self, change: ChangedRecords) -> tuple[NetlibError, ...]:
        """Do nothing: leases belong to CNI attachments, of which no notice tells; :meth:`reconcile` finds them."""
        return ()

    def reconcile(self, *, store_changed: bool) -> None:
        """Read the leases again when the store has changed; a renewal that failed has a timer of its own."""
        if store_changed:
            self.reload()

    def health(self) -> str | None:
        """Return a sentence on the first lease that no server renews, or None."""
        late = [held.lease for held in list(self._held.values()) if held.pause > _FIRST_PAUSE]
        return f"the DHCP lease of {late[0].address.ip} in {late[0].netns.label} is not renewed" if late else None

    def stop(self) -> None:
        """End the thread. The leases are kept and not released."""
        if self._loop is not None:
            self._loop.call(lambda: self._replace_leases({}))
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

    def _replace_leases(self, found: Mapping[str, DhcpLease]) -> None:
        for record in self._held.keys() - found.keys():
            self._drop(record)
        for record, lease in found.items():
            held = self._held.get(record)
            # One held since a later moment was renewed after the store was read.
            if held is None or (held.lease != lease and held.lease.since <= lease.since):
                self._hold(record, lease)

    @property
    def _the_loop(self) -> Loop:
        assert self._loop is not None, "leases are renewed in its thread"
        return self._loop

    def _hold(self, record: str, lease: DhcpLease) -> None:
        self._drop(record)
        held = self._held[record] = _RenewedLease(lease)
        if lease.lease is not None:
            self._do_in(lease.since + lease.renewal - now(), record, held, self._renew)

    def _do_in(self, seconds: float, record: str, held: _RenewedLease, task: Callable[[str, _RenewedLease], None]) -> None:
        held.timer = self._the_loop.after(max(0.0, seconds), self._guarded(lambda: task(record, held)))

    def _drop(self, record: str) -> None:
        held = self._held.pop(record, None)
        if held is not None:
            self._end_conversation(held)

    def _end_conversation(self, held: _RenewedLease) -> None:
        if held.timer is not None:
            held.timer.cancel()
        if held.conversation is not None:
            self._the_loop.forget(held.conversation.fileno())
            held.conversation.close()
            held.conversation = None

    # --- renewing ------------------------------------------------------------------------------------------------------

    def _renew(self, record: str, held: _RenewedLease) -> None:
        held.asked = now()
        self._do_in(_ANSWER_SECONDS, record, held, self._try_again)
        try:
            with self._make_controller().engine.kernel(record) as kernel:
                held.conversation = held.lease.conversation(kernel)
        except ObjectMissing as error:  # the netns is gone, and nobody uses the address; the runtime's DEL deletes the record
            self._end_conversation(held)
            logger.info("a DHCP lease is not renewed any more: %s", error)
            return
        read_answers = self._guarded(lambda: self._read_answers(record, held))
        self._the_loop.watch(held.conversation.fileno(), lambda _: read_answers())
        held.conversation.renew(held.lease)

    def _read_answers(self, record: str, held: _RenewedLease) -> None:
        if held.conversation is None:
            return
        for answer in held.conversation.answers():
            if self._is_granted(answer, held):
                self._write_renewed(record, held, answer)
                return
            if answer.kind is Kind.NAK and answer.server == held.lease.server:
                self._set_link_down(held, f"was refused by {answer.server}")
                return

    @staticmethod
    def _is_granted(answer: Message, held: _RenewedLease) -> bool:
        """Whether *answer* renews the lease: a DHCPACK of its server or, after T2, of any server."""
        lease = held.lease
        is_rebinding = held.asked >= lease.since + lease.rebinding
        return (
            answer.kind is Kind.ACK
            and answer.yours == lease.address.ip
            and answer.server is not None
            and (is_rebinding or answer.server == lease.server)
        )

    def _write_renewed(self, record: str, held: _RenewedLease, answer: Message) -> None:
        terms = terms_of(answer)
        self._end_conversation(held)
        lease = replace(held.lease, since=held.asked)
        if terms is not None:
            lease = replace(lease, server=terms.server, lease=terms.lease, renewal=terms.renewal, rebinding=terms.rebinding)
        if Attachments(self._make_controller()).revise(record, lease):
            self._hold(record, lease)
            logger.debug("the DHCP lease of %s was renewed by %s", lease.address.ip, lease.server)

    def _try_again(self, record: str, held: _RenewedLease) -> None:
        self._end_conversation(held)
        lease = held.lease
        assert lease.lease is not None
        if lease.is_over:
            self._set_link_down(held, "is over, and no server answered")
            return
        left = lease.since + lease.lease - now()
        self._do_in(min(held.pause, left), record, held, self._renew)
        held.pause = min(2 * held.pause, _LONGEST_PAUSE)

    def _set_link_down(self, held: _RenewedLease, how: str) -> None:
        """Set the container's link down, as the reference's daemon does: the server may lease the address to another host."""
        self._end_conversation(held)
        lease = held.lease
        logger.warning(
            "link %s in %s is set down, because its DHCP lease of %s %s", lease.link, lease.netns.label, lease.address.ip, how
        )
        with suppress(ObjectMissing), self._make_controller().engine.kernel("") as kernel:
            LinkUp(ifname=lease.link, netns=lease.netns).remove(kernel)
