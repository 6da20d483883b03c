"""The phases of a record, and what happens to a record that is found in one: the theory here, the table below it.

A transaction writes what an arrow says before the kernel follows, so a crash anywhere leaves a record that tells what to undo::

             1 record, objects, leases              2 every object is applied
    absent ───────────────────────────▶ creating ─────────────────────────────▶ ready
     ▲  ▲                                 │   │                                  │ ▲
     │  └── 3 deleted, with its leases: ──┘   │ 4 the way back failed:           │ │
     │        the way back was whole          │   something is left              │ │
     │                                        ▼      5 before an object goes     │ │
     └───── 6 deleted, with its leases: ─── removing ◀───────────────────────────┘ │
              no object is left               └────────── 7 somebody uses it ──────┘

* A process that writes 1 or 5 holds the record's lock from before that until after the next arrow; an endpoint's lock is its
  sandbox's. A reset writes 5 for all networks at once, under a lock of its own. So a record in ``creating`` or ``removing``
  whose lock is free is abandoned: its worker is dead.
* Verbs find a record, and join it, in ``ready`` alone; other modules that compare a phase with ``ready`` ask no more than
  that. The name of a record is taken in every phase.
* A record that a failure left in ``removing`` keeps its remaining objects written down, and each verb tries to remove them
  again.
* A network can be ``ready`` and not applied: its stamp is not this boot's. The predefined networks begin so, and after a boot
  all networks are so. The first verb that uses a network writes its objects down, applies them and stamps it.
* After a boot the kernel holds nothing of ours. Records of kinds that outlive a boot (networks) stay, without objects; all
  others are deleted.
* 7 undoes a reset that died, for networks that still have users. A living process that is joining a network is a user too. A
  network without users is taken down: no verb joins it any more.
"""

from collections.abc import Iterator
from enum import Enum, auto
from itertools import product
from typing import NamedTuple

from netlib.model import Phase

__all__ = ["ABSENT", "ARROWS", "TABLE", "Action", "Found", "Rule", "is_there", "what_happens"]

ABSENT = None  # the phase of a record that is not there

ARROWS: dict[Phase | None, set[Phase | None]] = {
    ABSENT: {Phase.CREATING, Phase.READY},  # ready at once: a predefined network, not applied
    Phase.CREATING: {Phase.READY, Phase.REMOVING, ABSENT},
    Phase.READY: {Phase.REMOVING, ABSENT},  # absent at once: after a boot
    Phase.REMOVING: {ABSENT, Phase.READY},
}
"""The picture: which phases follow which."""


class Found(Enum):
    """How a record is found, and by whom."""

    WORKED_ON = auto()  # by recovery: another process holds the record's lock
    ABANDONED = auto()  # by recovery, which holds the record's lock now
    BEING_RESET = auto()  # by recovery, which would call the record ready, but a reset is at work
    AFTER_BOOT = auto()  # by the first process that opens the store after a boot: the stamp is a former boot's
    OWING_AFTER_BOOT = auto()  # the same, and drivers hold something in the world for the record (a lease): that had no boot
    ASKED_FOR = auto()  # by a verb that is to use it
    UNAPPLIED = auto()  # by a verb that needs the record's objects and holds its lock: the stamp is not this boot's
    TO_GO = auto()  # by a verb that is to remove it
    TO_BE_MADE = auto()  # by a verb that is to make another one in its place: an endpoint of the same sandbox and network


class Action(Enum):
    """What happens to a record."""

    LEAVE_ALONE = auto()
    TAKE_DOWN = auto()  # its objects are removed, then it is deleted: arrows 5 and 6
    CALL_READY = auto()  # arrow 7
    FORGET = auto()  # it is deleted, with its files on the disk; nothing is removed from the kernel
    FORGET_OBJECTS = auto()  # its objects are deleted, but not what drivers hold in the world for it; it stays
    LEAVE_TO_RECOVERY = auto()  # the same, and it is called removing: the next recovery gives back what drivers hold
    APPLY = auto()  # its objects are written down and applied, and it is stamped
    GO_ON = auto()  # the verb does what it is to do
    RECOVER_FIRST = auto()  # the verb tries once more to take down what is abandoned
    REFUSE = auto()  # the verb is refused: there is no such record, or there is one already
    REFUSE_WHILE_IT_LEAVES = auto()  # the verb is refused: an object of it could not be removed


class Rule(NamedTuple):
    """A row of the table: *action* for a record in one of *phases* that is found so."""

    phases: tuple[Phase | None, ...]
    found: Found
    outlives_boot: bool | None  # whether its kind does; None for both
    is_used: bool | None  # whether somebody is in it, or is joining it; None for both
    action: Action | None  # None where there is no such case

    def cases(self) -> Iterator[tuple[Phase | None, Found, bool, bool]]:
        """Every case of it, as :func:`what_happens` is asked."""
        either = (False, True)
        outlives_boot = either if self.outlives_boot is None else (self.outlives_boot,)
        is_used = either if self.is_used is None else (self.is_used,)
        return product(self.phases, (self.found,), outlives_boot, is_used)


_ANY = None
_ABSENT, _READY, _REMOVING = (ABSENT,), (Phase.READY,), (Phase.REMOVING,)
_IN_FLIGHT = (Phase.CREATING, Phase.REMOVING)
_SETTLED = (ABSENT, Phase.READY)
_UNSEEN = (ABSENT, *_IN_FLIGHT)
_THERE = (Phase.CREATING, Phase.READY)
_ALL = (ABSENT, *Phase)

# fmt: off
TABLE = (
    #    in phase    found                   outlives a boot
    #                                               is used
    #                                                      what happens
    Rule(_ALL,       Found.WORKED_ON,        _ANY,  _ANY,  Action.LEAVE_ALONE),
    Rule(_IN_FLIGHT, Found.ABANDONED,        False, _ANY,  Action.TAKE_DOWN),  # nobody was told that it is there
    Rule(_IN_FLIGHT, Found.ABANDONED,        True,  False, Action.TAKE_DOWN),
    Rule(_IN_FLIGHT, Found.ABANDONED,        True,  True,  Action.CALL_READY),
    Rule(_SETTLED,   Found.ABANDONED,        _ANY,  _ANY,  Action.LEAVE_ALONE),  # its worker was done just now
    Rule(_IN_FLIGHT, Found.BEING_RESET,      True,  True,  Action.LEAVE_ALONE),
    Rule(_IN_FLIGHT, Found.BEING_RESET,      True,  False, None),  # no reset is looked for but before CALL_READY
    Rule(_IN_FLIGHT, Found.BEING_RESET,      False, _ANY,  None),
    Rule(_SETTLED,   Found.BEING_RESET,      _ANY,  _ANY,  None),
    Rule(_IN_FLIGHT, Found.AFTER_BOOT,       _ANY,  _ANY,  Action.FORGET),
    Rule(_READY,     Found.AFTER_BOOT,       False, _ANY,  Action.FORGET),
    Rule(_READY,     Found.AFTER_BOOT,       True,  _ANY,  Action.FORGET_OBJECTS),
    Rule(_ABSENT,    Found.AFTER_BOOT,       _ANY,  _ANY,  None),  # only what is written down is looked at
    Rule(_IN_FLIGHT, Found.OWING_AFTER_BOOT, _ANY,  _ANY,  Action.LEAVE_TO_RECOVERY),
    Rule(_READY,     Found.OWING_AFTER_BOOT, False, _ANY,  Action.LEAVE_TO_RECOVERY),
    Rule(_READY,     Found.OWING_AFTER_BOOT, True,  _ANY,  Action.FORGET_OBJECTS),
    Rule(_ABSENT,    Found.OWING_AFTER_BOOT, _ANY,  _ANY,  None),
    Rule(_READY,     Found.ASKED_FOR,        _ANY,  _ANY,  Action.GO_ON),
    Rule(_UNSEEN,    Found.ASKED_FOR,        _ANY,  _ANY,  Action.REFUSE),
    Rule(_READY,     Found.UNAPPLIED,        True,  _ANY,  Action.APPLY),
    Rule(_UNSEEN,    Found.UNAPPLIED,        True,  _ANY,  Action.LEAVE_ALONE),  # removed just now: the verb is refused
    Rule(_ALL,       Found.UNAPPLIED,        False, _ANY,  None),  # it was deleted after the boot
    Rule(_SETTLED,   Found.TO_GO,            _ANY,  _ANY,  Action.GO_ON),
    Rule(_IN_FLIGHT, Found.TO_GO,            _ANY,  _ANY,  Action.RECOVER_FIRST),
    Rule(_ABSENT,    Found.TO_BE_MADE,       _ANY,  _ANY,  Action.GO_ON),
    Rule(_THERE,     Found.TO_BE_MADE,       _ANY,  _ANY,  Action.REFUSE),
    Rule(_REMOVING,  Found.TO_BE_MADE,       _ANY,  _ANY,  Action.REFUSE_WHILE_IT_LEAVES),
)
# fmt: on
_ACTIONS = {case: rule.action for rule in TABLE for case in rule.cases()}


def what_happens(phase: Phase | None, found: Found, *, outlives_boot: bool = False, is_used: bool = False) -> Action:
    """Look up what happens to a record; LookupError for a case that cannot be."""
    action = _ACTIONS[phase, found, outlives_boot, is_used]
    if action is None:
        raise LookupError(f"there is no record in phase {phase} that is found {found.name}, {outlives_boot=}, {is_used=}")
    return action


def is_there(phase: Phase | None) -> bool:
    """Whether a verb goes on with a record that it asks for."""
    return what_happens(phase, Found.ASKED_FOR) is Action.GO_ON
