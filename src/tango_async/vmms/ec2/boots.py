"""Instances launched here: until they take jobs, and until it shows what they do to those that wait."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from ...config import Ec2


class Boots:
    """By instance id; of launches that AWS has not answered, by image."""

    def __init__(self, settings: Ec2) -> None:
        self._boot_s = settings.boot_s
        self._fresh_s = settings.scale_after_s
        self._asked_for: Counter[str] = Counter()
        self._fresh_until: dict[str, float] = {}
        """For ever while they boot."""
        self._patience_s: dict[str, float] = {}
        """For how long they may be waited for until they let us in, by all together."""

    @contextmanager
    def asking(self, image: str) -> Iterator[None]:
        """While an instance is asked for; `launched` counts it from then on."""
        self._asked_for[image] += 1
        try:
            yield
        finally:
            self._asked_for[image] -= 1

    def asked_for(self, image: str) -> int:
        return self._asked_for[image]

    def launched(self, instance: str) -> None:
        self._fresh_until[instance] = math.inf
        self._patience_s[instance] = self._boot_s

    def boots(self, instance: str) -> bool:
        """Whether it was launched here, and nobody has been let in yet."""
        return self._fresh_until.get(instance) == math.inf

    def booted(self, instance: str) -> None:
        """It takes jobs."""
        if self.boots(instance):
            self._fresh_until[instance] = asyncio.get_running_loop().time() + self._fresh_s
            self._patience_s.pop(instance, None)

    @asynccontextmanager
    async def awaited(self, instance: str) -> AsyncIterator[None]:
        """While it is waited for until it lets us in. Raises TimeoutError after `boot_s`.

        One that boots and goes from job to job has no more time than with its first.
        """
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._patience_s.get(instance, self._boot_s)):
                yield
        finally:
            if instance in self._patience_s:
                self._patience_s[instance] -= asyncio.get_running_loop().time() - began

    def fresh(self, instances: Iterable[str]) -> int:
        """Of how many of these it does not show yet what they do to the jobs that wait."""
        now = asyncio.get_running_loop().time()
        return sum(self._fresh_until.get(instance, now) > now for instance in instances)

    def forget(self, instances: Iterable[str]) -> None:
        for instance in instances:
            self._fresh_until.pop(instance, None)
            self._patience_s.pop(instance, None)
