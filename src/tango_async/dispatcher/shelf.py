"""The machines of one spec that wait for a job, and what is known of how they are used. No I/O.

All times are of one monotonic clock, in seconds, given by the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..machine import Machine, MachineSpec
from .policy import Policy

BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0


@dataclass(slots=True, eq=False)
class Ready:
    """A machine that waits."""

    machine: Machine
    version: str
    """Of its image, when its making began."""
    looked_s: float
    """When it was last seen alive."""


class Shelf:
    """One spec's."""

    def __init__(self, spec: MachineSpec, now: float) -> None:
        self.spec = spec
        self.idle: deque[Ready] = deque()
        self.lent = 0
        self.making = False
        self.owed = 0
        """Machines taken whose replacement is ordered, and not yet to be made."""
        self.used_s = now
        self.passed_by = False
        """Machines of the same image waited, and fitted none of this one's jobs; said once."""
        self.problem = ""
        """Why the last machine could not be made."""
        self._backoff_s = BACKOFF_S
        self._closed_until = now
        self._peaks: deque[tuple[float, int]] = deque()
        """(until when, how many were in use then), falling."""

    def lend(self, now: float) -> None:
        self.lent += 1
        self.owed += 1
        self._saw(now)

    def give_back(self, now: float) -> None:
        self._saw(now)
        self.lent -= 1

    def in_use_at_once(self, now: float, within_s: float) -> int:
        """The most machines that were in use at once in the last `within_s` seconds."""
        while self._peaks and self._peaks[0][0] < now - within_s:
            self._peaks.popleft()
        return max(self._peaks[0][1] if self._peaks else 0, self.lent)

    def wanted(self, policy: Policy | None, now: float) -> tuple[int, int]:
        """Machines that should wait: those that were ordered, and those that demand adds."""
        if policy is None or self.spec.cpuset != policy.usual.cpuset:
            # Of a quiet job: one that is made for the next would disturb it on its own cores.
            self._peaks.clear()
            return 0, 0
        serving = self.lent if policy.reused else 0
        ready = max(0, (policy.ready if policy.spec == self.spec else 0) - serving)
        peak = self.in_use_at_once(now, policy.idle_s)
        low = policy.low if peak else 0
        return ready, max(ready, max(low, min(peak, policy.demand)) - serving) - ready

    def may_make(self, now: float) -> bool:
        return not self.making and now >= self._closed_until

    def failed(self, problem: str, now: float) -> float:
        """No machine could be made. Answers after how many seconds the next try may come."""
        wait_s, self.problem = self._backoff_s, problem
        self._closed_until = now + wait_s
        self._backoff_s = min(2 * wait_s, BACKOFF_MAX_S)
        return wait_s

    def put_off(self, now: float) -> None:
        """The next try may come a little later."""
        self._closed_until = now + BACKOFF_S

    def well(self) -> None:
        self.problem, self._backoff_s = "", BACKOFF_S

    @property
    def blank(self) -> bool:
        """Nothing would be lost with it."""
        return not (self.idle or self.lent or self.owed or self.making or self._peaks)

    def _saw(self, now: float) -> None:
        self.used_s = now
        while self._peaks and self._peaks[-1][1] <= self.lent:
            self._peaks.pop()
        self._peaks.append((now, self.lent))


def share_out(
    shelves: Iterable[Shelf], policy_of: Callable[[str], Policy | None], room: int, now: float
) -> dict[Shelf, int]:
    """How many machines may wait on each shelf, `room` in all, those that were used last coming first.

    What was ordered is granted to all before what demand adds to any. Those of one image, with those in
    use, are no more than its policy's `most`.
    """
    latest_first = sorted(shelves, key=lambda shelf: shelf.used_s, reverse=True)
    wants: dict[Shelf, tuple[int, int]] = {}
    left: dict[str, int] = {}
    for shelf in latest_first:
        policy, image = policy_of(shelf.spec.image), shelf.spec.image
        wants[shelf] = shelf.wanted(policy, now)
        if policy is not None and policy.most is not None:
            left[image] = left.get(image, policy.most) - shelf.lent
    granted = dict.fromkeys(latest_first, 0)
    for part in (0, 1):
        for shelf in latest_first:
            image = shelf.spec.image
            share = max(0, min(wants[shelf][part], room, left.get(image, room)))
            granted[shelf] += share
            room -= share
            if image in left:
                left[image] -= share
    return granted
