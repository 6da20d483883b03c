"""The servants of netlibd as one list: started in order, stopped in reverse, told of changes, asked how they are."""

import pytest

from netlib.daemon.servants import ChangedRecords, Servants
from netlib.errors import Conflict, NetlibError, StoreError


class Recorded:
    """A servant that writes down what is asked of it."""

    def __init__(self, name: str, told: list[str], *, trouble: NetlibError | None = None, starts: bool = True) -> None:
        self.name = name
        self._told = told
        self._trouble = trouble
        self._starts = starts

    def start(self) -> None:
        self._told.append(f"start {self.name}")
        if not self._starts:
            raise StoreError(f"{self.name} cannot start")

    def changed(self, change: ChangedRecords) -> list[NetlibError]:
        self._told.append(f"tell {self.name} {','.join(change.sandboxes)}")
        return [self._trouble] if self._trouble else []

    def reconcile(self, *, store_changed: bool) -> None:
        self._told.append(f"reconcile {self.name}")

    def health(self) -> str | None:
        return str(self._trouble) if self._trouble else None

    def stop(self) -> None:
        self._told.append(f"stop {self.name}")


def test_they_are_started_in_order_and_stopped_in_reverse() -> None:
    told: list[str] = []
    servants = Servants([Recorded("names", told), Recorded("ports", told)])
    servants.start()
    servants.changed(sandboxes=["a", "b"], networks=(), needed=True)
    servants.stop()
    servants.stop()
    assert told == ["start names", "start ports", "tell names a,b", "tell ports a,b", "stop ports", "stop names"]


def test_one_that_cannot_start_stops_those_before_it() -> None:
    told: list[str] = []
    servants = Servants([Recorded("names", told), Recorded("ports", told, starts=False), Recorded("leases", told)])
    with pytest.raises(StoreError, match="ports cannot start"):
        servants.start()
    assert told == ["start names", "start ports", "stop ports", "stop names"]


def test_what_is_wrong_is_raised_where_it_is_needed_and_shown_in_any_case() -> None:
    told: list[str] = []
    servants = Servants([Recorded("names", told, trouble=Conflict("port 53 is taken")), Recorded("ports", told)])
    servants.changed(sandboxes=(), networks=(), needed=False)
    with pytest.raises(Conflict, match="port 53"):
        servants.changed(sandboxes=(), networks=(), needed=True)
    assert servants.health() == {"names": "port 53 is taken", "ports": "ok"}
