"""Whose turn it is on which of several hosts. No I/O.

Asks are served in the order in which they came. One that finds no host with room for it keeps the host
where most is free for itself, so that small jobs do not keep a large one out for ever; the others pass it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import HostUnavailable, ImageNotFound, VmmsError


class Place(Protocol):
    """What is to be known of a host."""

    @property
    def slots(self) -> int: ...
    @property
    def well(self) -> bool: ...
    @property
    def machines(self) -> Collection[str]:
        """Those on it that are known, prepared ones included."""

    @property
    def images(self) -> Mapping[str, str]:
        """By name; of a host that is away, as they were."""


@dataclass(slots=True)
class _Wait:
    image: str
    n: int
    turn: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Placement:
    """The slots of all hosts. A job of more slots than any host has gets one that is empty."""

    def __init__(self, hosts: Mapping[str, Place]) -> None:
        self._hosts = hosts
        self._taken = dict.fromkeys(hosts, 0)
        self._waiting: deque[_Wait] = deque()

    def taken(self, name: str) -> int:
        return self._taken[name]

    def free(self, name: str) -> int:
        host = self._hosts[name]
        return max(0, host.slots - self._taken[name]) if host.well else 0

    def slots(self) -> int:
        """Of the hosts that are well, and what is still taken of the others."""
        return sum(host.slots if host.well else self._taken[name] for name, host in self._hosts.items())

    def room(self, image: str) -> int:
        """What is free for jobs of the image, less what others of it wait for."""
        waits = sum(wait.n for wait in self._waiting if wait.image == image)
        return max(0, sum(self.free(name) for name in self._having(image)) - waits)

    def best(self, image: str) -> str:
        """The host for another machine, whether or not there is a slot. Raises ImageNotFound, HostUnavailable."""
        having = self._having(image)
        if not having:
            raise self._why_none(image)
        return max(having, key=lambda name: (self.free(name), -len(self._hosts[name].machines)))

    def ask(self, image: str, n: int) -> asyncio.Future[str]:
        wait = _Wait(image, n)
        self._waiting.append(wait)
        self.settle()
        return wait.turn

    def leave(self, n: int, turn: asyncio.Future[str]) -> None:
        if not turn.cancel() and not turn.cancelled() and turn.exception() is None:
            self._taken[turn.result()] -= n
        self.settle()

    def hold(self, name: str, n: int) -> asyncio.Future[str]:
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        turn.set_result(name)
        self._taken[name] += n
        return turn

    def settle(self) -> None:
        """Gives turns to whom they can be given; called whenever a host has changed."""
        kept: set[str] = set()
        for wait in list(self._waiting):
            if wait.turn.cancelled() or self._admit(wait, kept):
                self._waiting.remove(wait)

    def _admit(self, wait: _Wait, kept: set[str]) -> bool:
        having = self._having(wait.image)
        if not having:
            wait.turn.set_exception(self._why_none(wait.image))
            return True
        open_to_it = [name for name in having if name not in kept]
        fitting = [name for name in open_to_it if self._fits(name, wait.n)]
        if not fitting:
            kept.update(sorted(open_to_it, key=self._welcome)[-1:])
            return False
        name = max(fitting, key=self._welcome)
        self._taken[name] += wait.n
        wait.turn.set_result(name)
        return True

    def _fits(self, name: str, n: int) -> bool:
        return self._taken[name] == 0 or self._taken[name] + n <= self._hosts[name].slots

    def _welcome(self, name: str) -> tuple[int, int]:
        """Of equals the one with more machines: those that are not used wait for a job."""
        return self.free(name), len(self._hosts[name].machines)

    def _having(self, image: str) -> list[str]:
        return [name for name, host in self._hosts.items() if host.well and image in host.images]

    def _why_none(self, image: str) -> VmmsError:
        away = [name for name, host in self._hosts.items() if not host.well]
        if any(image in self._hosts[name].images for name in away):
            return HostUnavailable(f"{image} is only on hosts that are away: {', '.join(away)}")
        return ImageNotFound(f"{image} is on none of docker.hosts ({', '.join(self._hosts)})")
