"""What this host offers to run now, as requirement classes: it alone knows its images, machines, slots and faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from ..model import GPU, class_name
from ..vmms.base import ManyHosts, Vmms
from .breaker import Breaker
from .cores import Cores
from .images import Images
from .pool import Pool
from .scale import Scale
from .slots import Slots
from .waits import first_of

log = logging.getLogger(__name__)

Offer = tuple[dict[str, int], int]
"""The room for jobs of each requirement class, and the slots that all of them may fill."""


class Offers:
    """Asked before every claim. `labels` are this host's."""

    def __init__(
        self,
        images: Images,
        pool: Pool,
        slots: Slots,
        cores: Cores,
        labels: Sequence[str],
        breaker: Breaker,
        hosts: ManyHosts | None,
        scale: Scale | None,
    ) -> None:
        self.labels = tuple(labels)
        self._images = images
        self._pool = pool
        self._slots = slots
        self._cores = cores
        self._breaker = breaker
        self._hosts = hosts
        self._scale = scale

    @property
    def ready(self) -> bool:
        """Whether a job could be run now."""
        free = self._slots.free > 0 or self._cores.turns.free > 0
        return self._images.healthy and self._breaker.room != 0 and free

    async def room(self) -> None:
        """Returns when it is ready."""
        while not self.ready:
            await self._images.well.wait()
            await self._breaker.opens()
            await first_of(self._slots.room(), self._cores.turns.room())

    def now(self) -> Iterator[Offer]:
        """For ordinary jobs, then for quiet ones; what was claimed by the first is counted in the second."""
        for quiet, free in ((False, self._slots), (True, self._cores.turns)):
            most = _least(free.free, self._breaker.room)
            room = {
                class_name(image, quiet=quiet, labels=self.labels): n
                for image in self._images.names
                if (n := _least(most, *self._bounds(image), self._scaled(image))) > 0
            }
            if room:
                yield room, most

    def rooms(self) -> dict[str, int]:
        """By image: how many ordinary jobs could be taken if there were machines for them, where those are scaled."""
        most = _least(self._slots.free, self._breaker.room) if self.ready else 0
        return {image: _least(most, *self._bounds(image)) for image in self._images.names}

    def _bounds(self, image: str) -> tuple[int | None, ...]:
        # Those of a full pool would only fill slots.
        return self._pool.room(image), self._breaker.room_for(image), self._on_hosts(image)

    def _scaled(self, image: str) -> int | None:
        return self._scale.room(image) if self._scale is not None else None

    def _on_hosts(self, image: str) -> int | None:
        """Slots of the hosts that have the image, where there are several."""
        return self._hosts.room(image) if self._hosts is not None else None


def _least(most: int, *bounds: int | None) -> int:
    return min([most, *(bound for bound in bounds if bound is not None)])


def labels_of(configured: Sequence[str], vmms: Vmms) -> tuple[str, ...]:
    """What this host offers to jobs that require it."""
    if GPU in configured and not vmms.capabilities.gpu:
        log.warning("dispatcher.labels: %s gives no job a GPU; none that requires one is taken", vmms.name)
    others = {label for label in configured if label != GPU}
    return tuple(sorted(others | {GPU} if vmms.capabilities.gpu else others))
