"""Which torments a soak has, and when: a function of the seed, of what can be drawn, and of nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol


class Part(Protocol):
    """What can be tormented."""

    kind: str
    """As the table names it."""

    async def begin(self, what: str) -> bool:
        """Does it; False if there was nothing to do it to."""

    async def undo(self, what: str) -> None:
        """After which the part can work again."""


@dataclass(frozen=True, slots=True)
class Torment:
    """One thing done to one part at `at_s`, and undone `for_s` later."""

    at_s: float
    what: str
    part: str
    for_s: float


@dataclass(frozen=True, slots=True)
class Wish:
    """A torment that may be drawn. One part has one torment at a time, so `part` is also what it excludes."""

    weight: int
    what: str
    part: str
    longest_s: float


@dataclass(frozen=True, slots=True)
class Wishes:
    """Of each of the two, as many are drawn."""

    kills: list[Wish] = field(default_factory=list)
    others: list[Wish] = field(default_factory=list)

    def __add__(self, more: Wishes) -> Wishes:
        return Wishes(self.kills + more.kills, self.others + more.others)


def of_services(servers: range, dispatchers: range) -> Wishes:
    """What the processes of the service go through, wherever they run jobs and keep files."""
    kills = [
        *(Wish(3, "kill", f"http-{i}", 3) for i in servers),
        *(Wish(5, "kill", f"dispatcher-{i}", 4) for i in dispatchers),
        Wish(3, "kill", "redis", 3),
        Wish(1, "destroy", "machine", 0),
    ]
    others = [
        *(Wish(2, "pause", f"http-{i}", 5) for i in servers),
        *(Wish(3, "pause", f"dispatcher-{i}", 8) for i in dispatchers),
        Wish(2, "pause", "redis", 4),
        *(Wish(2, "cut", f"http-{i}-clients", 0) for i in servers),
        *(Wish(1, "hold", f"http-{i}-clients", 4) for i in servers),
        *(Wish(1, "cut", f"http-{i}-redis", 0) for i in servers),
        *(Wish(1, "hold", f"http-{i}-redis", 4) for i in servers),
        *(Wish(2, "cut", f"dispatcher-{i}-redis", 0) for i in dispatchers),
        *(Wish(2, "hold", f"dispatcher-{i}-redis", 8) for i in dispatchers),
    ]
    return Wishes(kills, others)


APART_S = 0.5
"""Between two torments of one part."""


def plan(seed: int, seconds: float, kills_per_minute: float, wishes: Wishes) -> list[Torment]:
    """Kills at that rate, and as many other torments."""
    chance = random.Random(f"torments {seed}")
    found = _draw(chance, wishes.kills, seconds, kills_per_minute)
    found += _draw(chance, wishes.others, seconds, kills_per_minute)
    free_at: dict[str, float] = {}
    kept = []
    for torment in sorted(found, key=lambda t: t.at_s):
        if torment.at_s >= free_at.get(torment.part, 0.0):
            free_at[torment.part] = torment.at_s + torment.for_s + APART_S
            kept.append(torment)
    return kept


def _draw(chance: random.Random, wishes: list[Wish], seconds: float, per_minute: float) -> list[Torment]:
    weights = [wish.weight for wish in wishes]
    drawn = chance.choices(wishes, weights, k=round(seconds * per_minute / 60))
    # Nothing within the last second, so that every torment is over when the last job has come.
    return [
        Torment(chance.uniform(1.0, max(seconds - 1.0, 1.0)), wish.what, wish.part, _length(chance, wish))
        for wish in drawn
    ]


def _length(chance: random.Random, wish: Wish) -> float:
    """Mostly short, sometimes up to the longest."""
    return wish.longest_s * chance.uniform(0.05, 1.0) ** 1.5
