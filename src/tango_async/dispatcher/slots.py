"""The room that a host has for jobs: a semaphore that can be resized and shut while it is in use.

A job takes as many slots as it has cores. One that wants more than there are takes its turn like any
other, and gets in when it is alone. Waits are served in the order in which they began, so that small
jobs do not keep a large one out for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """`size` slots. Not safe for threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._busy = 0
        self._paused = False
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._room = asyncio.Event()
        self._admit()

    @property
    def size(self) -> int:
        return self._size

    @property
    def busy(self) -> int:
        """Slots that are taken; more than `size` after it was lowered, or while a job that is too large runs."""
        return self._busy

    @property
    def free(self) -> int:
        """Slots that could be taken now: none while paused or somebody waits, and never less than 0."""
        return 0 if self._paused or self._waiting else max(0, self._size - self._busy)

    @property
    def paused(self) -> bool:
        return self._paused

    def ask(self, n: int = 1) -> asyncio.Future[None]:
        """A turn to take `n` slots, after all that asked before; it is done when they are taken. See `leave`."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((n, turn))
        self._admit()
        return turn

    def leave(self, n: int, turn: asyncio.Future[None]) -> None:
        """Gives back what the turn has taken, or gives the turn up."""
        if turn.cancel() or turn.cancelled():
            self._admit()  # the next one may fit where this one did not
        else:
            self.release(n)

    async def room(self) -> None:
        """Returns when `free` is not 0."""
        await self._room.wait()

    def take(self, n: int = 1) -> None:
        """Takes `n` slots at once, whether they are free or not: for a job that runs already."""
        self._busy += n
        self._admit()

    def release(self, n: int = 1) -> None:
        """Gives back `n` slots."""
        if n > self._busy:
            raise ValueError(f"{n} slots are released, and {self._busy} are taken")
        self._busy -= n
        self._admit()

    def resize(self, size: int) -> None:
        """Sets how many there are. What is taken stays taken."""
        if size < 1:
            raise ValueError(f"{size} slots")
        self._size = size
        self._admit()

    def pause(self) -> None:
        """Nothing is `free` until `resume`. Who has asked before still gets its turn: its job is claimed."""
        self._paused = True
        self._admit()

    def resume(self) -> None:
        self._paused = False
        self._admit()

    def _fits(self, n: int) -> bool:
        return self._busy == 0 or self._busy + n <= self._size

    def _admit(self) -> None:
        while self._waiting:
            n, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(n):
                    break
                self._busy += n
                turn.set_result(None)
            self._waiting.popleft()
        if self.free:
            self._room.set()
        else:
            self._room.clear()
