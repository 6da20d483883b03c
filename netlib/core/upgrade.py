"""Upgrading the networks and endpoints of an earlier netlib: once for each store, by the first process that opens it.

Containers and networks keep running during an upgrade, and need the protection that new ones get. This module only adds
objects. Objects of the earlier plans that the present plans lack stay in the store, and are removed with their record. After a
boot nothing of the earlier netlib is in the kernel, so only the revision is written.
"""

import time
from collections.abc import Iterator
from typing import Any

from netlib.core.lifecycle import Lifecycle
from netlib.core.sandbox_plan import inside_plan
from netlib.driverapi import Addressless
from netlib.errors import NetlibError
from netlib.firewall.objects import FirewallBase
from netlib.kernel.handle import Kernel
from netlib.kernel.links import ensure_router_refusal
from netlib.kernel.routers import router_refusal_drift
from netlib.model import HOST, Endpoint, Network, Phase
from netlib.plan import Plan, ability
from netlib.registry import driver_of
from netlib.store.kinds import lock_of
from netlib.store.records import JournalEntry, Row, Transaction
from netlib.store.tags import store_of

__all__ = ["bring_up_to_date"]

REVISION = "2"
"""The revision of the plans' content. 1 (in the store: none), until 11f308c. 2 adds links that refuse router advertisements and
redirects, and the check of members' source addresses."""
_FACT = "plans"  # the key in the store's table ``meta`` that has the revision
_PURPOSE = "bringing what an earlier netlib made up to date"


def bring_up_to_date(lifecycle: Lifecycle) -> None:
    """Apply the plans of this netlib to the networks and endpoints of *lifecycle*'s store, unless the store has its revision.

    Failures are written into the journal, and are not tried again. A store with this revision costs one read of one row.
    """
    store = lifecycle.store
    with store.read() as tx:
        if tx.meta(_FACT) == REVISION:
            return
    if store.is_read_only:
        return
    started, clock = time.time(), time.perf_counter()
    with lifecycle.engine.locks.hold("upgrade", _PURPOSE):
        with store.read() as tx:
            if tx.meta(_FACT) == REVISION:
                return
            networks: list[Row[Any]] = [
                row for row in tx.all(Network) if row.phase is Phase.READY and lifecycle.is_materialised(row)
            ]
            endpoints: list[Row[Any]] = [row for row in tx.all(Endpoint) if row.phase is Phase.READY]
        failures = [*_refuse_routers(lifecycle), *_renew_base(lifecycle)]
        for row in (*networks, *endpoints):
            try:
                failures += _add_what_is_new(lifecycle, row)
            except NetlibError as error:
                failures.append(error)
        for sandbox in sorted({row.value.sandbox for row in endpoints}):
            try:
                with lifecycle.working_on([sandbox], _PURPOSE), lifecycle.engine.kernel(sandbox) as kernel:
                    lifecycle.replan_sandbox(kernel, sandbox)
            except NetlibError as error:
                failures.append(error)
        with store.write() as tx:
            tx.set_meta(_FACT, REVISION)
            if failures:
                outcome = "; ".join(f"{type(error).__name__}: {error}" for error in failures)
                tx.log(JournalEntry(started, "upgrade", "", outcome, time.perf_counter() - clock, []))


def _refuse_routers(lifecycle: Lifecycle) -> Iterator[NetlibError]:
    """Make the host's links with the store's tag refuse router advertisements and redirects; yield errors.

    An adopted link has no tag and is left as its owner made it.
    """
    with Kernel() as kernel:
        for link in kernel.rtnl().links():
            if store_of(link.alias) == lifecycle.engine.store_tag and router_refusal_drift(link):
                try:
                    ensure_router_refusal(kernel, HOST, link.ifname)
                except NetlibError as error:
                    yield error


def _renew_base(lifecycle: Lifecycle) -> list[NetlibError]:
    """Put this netlib's static rules into the firewall's table, where a ready record has made that in this boot.

    netlibd would do so, some time after its start; a CNI plugin's CHECK may come before that, and a host may have no netlibd.
    """
    base = FirewallBase()
    with lifecycle.store.read() as tx:
        holders = [record for record, item in tx.ready_objects("firewall", "host") if item.key == base.key]
        rows = [row for record in holders if (row := tx.by_id(record)) is not None]
    if not any(map(lifecycle.is_materialised, rows)):
        return []
    with lifecycle.engine.kernel("") as kernel:
        return lifecycle.engine.repair(kernel, Plan(base))


def _add_what_is_new(lifecycle: Lifecycle, row: Row[Any]) -> list[NetlibError]:
    """Write and apply the objects that this netlib's plan of a network or an endpoint has and the stored plan lacks.

    Returns the errors of objects that could not be applied.
    """
    with lifecycle.working_on([lock_of(row)], _PURPOSE), lifecycle.engine.kernel(row.id) as kernel:
        with lifecycle.store.write() as tx:
            present = tx.by_id(row.id)
            if present is None or present.phase is not Phase.READY:
                return []
            old, wanted = tx.objects(row.id), _plan(tx, present)
            known = {item.key for item in old}
            new = Plan(*(item for item in wanted if item.key not in known))
            if not new:
                return []
            new = lifecycle.engine.observed(tx, kernel, row.id, new, own=old)
            tx.write_objects(row.id, (*old, *new))
        return lifecycle.engine.repair(kernel, new)


def _plan(tx: Transaction, row: Row[Any]) -> Plan:
    """Plan a network or an endpoint anew; an endpoint without its network or its sandbox has an empty plan."""
    if isinstance(row.value, Network):
        return driver_of(row.value).network_plan(row.value)
    network, box = tx.by_id(row.value.network), tx.by_id(row.value.sandbox)
    if network is None or box is None:
        return Plan()
    known = driver_of(network.value)
    plan = known.join_plan(network.value, row.value, box.value)
    return plan if ability(known, Addressless) else plan + inside_plan(row.value, box.value.netns)
