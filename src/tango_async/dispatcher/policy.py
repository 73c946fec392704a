"""How many machines of an image are kept ready: by an operator's order, a table of the settings, or demand.

What is more particular wins: `prealloc` of this image, then `scale`, then the first table of `[[pools.image]]`
whose pattern fits, then `[pools]`. Holds no machine and does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from msgspec.structs import replace

from ..config import ImagePool, Pools
from ..machine import MachineSpec
from ..model import EVERY_IMAGE, MAX_POOL, PoolOrder

T = TypeVar("T")

NO_TABLE = ImagePool(pattern="*")
"""Of an image that the settings do not name."""

NO_ORDER = PoolOrder(size=0)
"""One of no machines says nothing of their size either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is kept ready of one image on this host."""

    usual: MachineSpec
    """What a job has that asks for nothing special."""
    spec: MachineSpec
    """What it gets: of the ordered size, as Tango has it. `ready` counts these."""
    ordered: bool
    """Somebody named this image: its pool is shown also while it is empty."""
    ready: int
    """Machines of `spec` that wait, whether jobs come or not."""
    low: int
    """Machines that wait of every spec that was in use within idle_s."""
    demand: int
    """… and up to so many, if as many were in use at once within idle_s."""
    most: int | None
    """Machines of the image at a time, those in use included."""
    idle_s: float
    reused: bool = False
    """Machines serve job after job, so that those in use count as well in `ready`, `low` and `demand`."""

    def fit(self, spec: MachineSpec) -> MachineSpec:
        """The machine for a job that asks for `spec`: whether it has a network is its own affair."""
        if replace(spec, network=self.usual.network) != self.usual:
            return spec
        return replace(self.spec, network=spec.network)


class Policies:
    """For a host whose VMMS can do so much, under these orders.

    `usual` tells the machine of a job of an image that asks for nothing special.
    """

    def __init__(
        self,
        settings: Pools,
        orders: Mapping[str, PoolOrder],
        *,
        vmms: str,
        prestart: bool,
        usual: Callable[[str], MachineSpec],
        reused: bool = False,
    ) -> None:
        self._settings = settings
        self._prestart = prestart
        self._reused = reused
        self._usual = usual
        self._orders = {image: order for image, order in orders.items() if order.vmms in (None, vmms)}

    def of(self, image: str) -> Policy:
        pools = self._settings
        table = next((table for table in pools.image if fnmatchcase(image, table.pattern)), NO_TABLE)
        order, scale = self._orders.get(image), self._orders.get(EVERY_IMAGE)
        ready = low = 0
        demand, most = _given(table.demand, pools.demand), _given(table.max, pools.max)
        if order is not None:
            ready = order.size
            demand = demand if ready else 0
        elif scale is not None:
            ready, low = (0 if table is NO_TABLE else scale.size), scale.size
            demand = most = scale.max
        else:
            ready = table.min
        warm, usual = self._prestart, self._usual(image)
        return Policy(
            usual=usual,
            spec=_ordered(usual, order if order is not None and order.size else NO_ORDER, table),
            ordered=order is not None or ready > 0,
            ready=min(ready, MAX_POOL) if warm else 0,
            low=low if warm else 0,
            demand=demand if warm else 0,
            most=most or None,
            idle_s=_given(table.idle_s, pools.idle_s),
            reused=self._reused,
        )


def _ordered(usual: MachineSpec, order: PoolOrder, table: ImagePool) -> MachineSpec:
    network = table.network if order.network is None else order.network
    return replace(
        usual,
        network=usual.network and network is not False,
        cores=order.cores or table.cores or usual.cores,
        memory_bytes=(order.memory_mb or 0) * 1024**2 or table.memory_bytes or usual.memory_bytes,
    )


def _given(value: T | None, default: T) -> T:
    """0 and false are given, too."""
    return default if value is None else value
