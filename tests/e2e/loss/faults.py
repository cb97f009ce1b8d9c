"""Which faults strike when, drawn from a seed; pure, so that a seed tells the whole story again."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

LONGEST_PAUSE = 2.0
"""Seconds between two faults, at most."""

LURKING = 0.5
"""How many of them wait for work in flight."""


class Kind(StrEnum):
    """What can be struck."""

    RECEIVER = "receiver killed"
    WORKER = "worker killed"
    HORSE = "work-horse killed"
    VALKEY = "Valkey killed"
    FROZEN = "Valkey stopped for 3 s"
    UP = "up killed"


Victims = Mapping[Kind, Sequence[str]]

VICTIMS: Victims = {
    Kind.RECEIVER: ("receiver",),
    Kind.WORKER: ("worker",),
    Kind.VALKEY: ("valkey",),
    Kind.FROZEN: ("valkey",),
    Kind.UP: ("up",),
}
"""The processes of each kind. A work-horse is only forked for the queue `handle`, which gets no jobs here."""
SEPARATE: Victims = {
    **{kind: names for kind, names in VICTIMS.items() if kind is not Kind.UP},
    Kind.WORKER: ("persist", "notify"),
}
"""The same without `up`."""


@dataclass(frozen=True)
class Fault:
    """One strike: `pause` seconds after the one before, the `kind` and the process it hits.

    With `lurks` it waits until work is in flight; otherwise it strikes whatever happens, a start included.
    """

    pause: float
    lurks: bool
    kind: Kind
    victim: str


def draw(seed: int, count: int, victims: Victims = VICTIMS) -> list[Fault]:
    """`count` faults: all kinds in an order that is drawn, and again, so that few faults are of all kinds."""
    drawing = random.Random(seed)
    faults: list[Fault] = []
    order: list[Kind] = []
    while len(faults) < count:
        order = order or drawing.sample(sorted(victims), len(victims))
        kind = order.pop()
        victim = drawing.choice(victims[kind])
        lurks = drawing.random() < LURKING
        faults.append(Fault(drawing.uniform(0, LONGEST_PAUSE), lurks, kind, victim))
    return faults
