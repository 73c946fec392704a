"""The dispatcher of one grading host: a handful of loops around the queue.

- claim: as long as a slot is free and the engine is well, asks for jobs and starts their attempts;
- extend: keeps the leases of what is held, and hears cancels; waits for nothing else;
- beat: asks the engine how it is, publishes what this host has, takes orders;
- tend: keeps prepared machines;
- upkeep and callbacks: work that any dispatcher may do for all.

Owns the host's instance of the VMMS. What it holds when told to stop it finishes within the grace,
hands over, or gives back.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

from .. import __version__
from ..config import Settings
from ..errors import QueueUnavailable, VmmsUnavailable
from ..files.base import FileStore
from ..machine import Machine, MachineSpec
from ..model import Claim, DispatcherRecord, JobSpec
from ..queue.bells import Bells
from ..queue.redis import Queue
from ..vitals import Vitals, rss_bytes
from ..vmms.base import ManyHosts, Vmms
from . import upkeep
from .attempt import Attempt, Bench
from .breaker import Breaker
from .callbacks import Callbacks
from .claiming import PAUSE_S, Claiming
from .cores import Cores
from .holds import Hold, Holds
from .images import Images
from .offers import Offers, labels_of
from .policy import Policies
from .pool import Pool
from .scale import Scale
from .slots import Slots
from .strays import Strays
from .transfers import Transfers
from .waits import either, end, wake_on

log = logging.getLogger(__name__)


class Dispatcher:
    """One dispatcher process. `install` names its place on this host, over restarts."""

    def __init__(self, settings: Settings, queue: Queue, store: FileStore, vmms: Vmms, install: str) -> None:
        self._settings = settings
        self._queue = queue
        self._store = store
        self._vmms = vmms
        self._install = install
        self._instance = uuid4().hex
        self._started_ms = int(time.time() * 1000)
        self._holds = Holds(queue)
        self._images = Images(vmms)
        self._transfers = Transfers(queue, store, vmms, self._images, install)
        waits, version_of = settings.dispatcher, self._images.version
        self._pool = Pool(
            vmms, self._instance, wait_s=waits.machine_wait_s, bounds=settings.pools, version_of=version_of
        )
        self._strays = Strays(vmms, self._pool, self._adopt_late, period_s=waits.upkeep_s, wait_s=waits.machine_wait_s)
        self._hosts = vmms if isinstance(vmms, ManyHosts) else None
        """Where the back-end has several."""
        self._slots = Slots(settings.dispatcher.slots)
        self._cores = Cores(settings.dispatcher.quiet_cores if vmms.capabilities.cpusets else "")
        if settings.dispatcher.quiet_cores and not vmms.capabilities.cpusets:
            log.warning("dispatcher.quiet_cores: %s keeps no machine to some cores; no quiet job is taken", vmms.name)
        self._rung = asyncio.Event()
        self._breaker = Breaker(waits.pause_after_faults, waits.try_again_s, self._rung.set)
        self._resumed: int | None = None
        labels = labels_of(settings.dispatcher.labels, vmms)
        self._scale = Scale(queue, vmms, self._pool, self._instance, labels) if vmms.capabilities.scaling else None
        """Where machines serve job after job."""
        self._offers = Offers(
            self._images, self._pool, self._slots, self._cores, labels, self._breaker, self._hosts, self._scale
        )
        self._attempts: set[asyncio.Task[None]] = set()
        self._ended = 0
        self._vitals = Vitals()
        self._later: set[asyncio.Task[None]] = set()
        self._claiming = Claiming(settings, queue, self._instance, self._offers, self._pool, self._take)
        self._control = Bells(settings)
        self._bench = Bench(
            settings=settings,
            queue=queue,
            store=store,
            vmms=vmms,
            hosts=self._hosts,
            pool=self._pool,
            images=self._images,
            cores=self._cores,
            breaker=self._breaker,
            later=self._do_later,
        )

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Works until `stop` is set.

        Raises VmmsError, QueueUnavailable if the engine or Redis is not there at the start, and leaves all as it was.
        """
        done = asyncio.Event()
        vitals = asyncio.create_task(self._vitals.watch())
        try:
            await self._vmms.open()
            await self._images.look()
            await self._obey()
            await self._adopt_or_remove()
            with suppress(QueueUnavailable):
                await self._take_orders()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._extend_until(done))
                group.create_task(self._beat_until(done))
                group.create_task(self._pool.tend(done))
                group.create_task(Callbacks(self._settings, self._queue, self._store).run(done))
                group.create_task(upkeep.run(self._settings, self._queue, self._store, self._instance, done))
                group.create_task(self._strays.run(done))
                group.create_task(self._follow_hosts(done))
                if self._scale is not None:
                    group.create_task(self._scale.run(self._offers.rooms, done))
                ready(f"vmms {self._vmms.name}, {self._slots.size} slots{', paused' if self._slots.paused else ''}")
                await self._claiming.until(stop)
                await self._finish()
                done.set()
        finally:
            vitals.cancel()
            await self._give_up_attempts()
            await self._pool.close()
            if self._later:
                await asyncio.wait(self._later, timeout=5.0)
            await self._claiming.close()
            await self._control.close()
            await self._vmms.close()

    # -- jobs ------------------------------------------------------------------------------------

    def _take(self, claim: Claim) -> None:
        hold = self._holds.add(claim)
        slots, n = self._place(claim.spec)
        turn = slots.ask(n)
        self._breaker.enter(claim.spec.image, hold)
        self._spawn(hold, Attempt(self._bench, hold).run(turn), partial(slots.leave, n, turn))

    def _place(self, spec: JobSpec) -> tuple[Slots, int]:
        """What a job needs a turn of, and how much: quiet ones take no slot, since they have cores of their own."""
        return (self._cores.turns, min(spec.slots, self._cores.capacity)) if spec.quiet else (self._slots, spec.slots)

    def _spawn(self, hold: Hold, work: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        task = asyncio.create_task(work, name=f"job {hold.claim.id}")
        self._attempts.add(task)
        self._pool.enter(hold.claim.spec.image)

        def over(task: asyncio.Task[None]) -> None:
            self._attempts.discard(task)
            self._ended += 1
            self._holds.drop(hold)
            self._pool.leave(hold.claim.spec.image)
            self._breaker.leave(hold.claim.spec.image, hold)
            then()
            self._look_again()
            _report(task)

        task.add_done_callback(over)

    def _look_again(self) -> None:
        """While there is room for jobs of one kind it is listened for those only; now there may be for others."""
        if self._cores.capacity or self._hosts is not None:
            self._pool.roomier.set()

    async def _finish(self) -> None:
        """Lets running jobs end within the grace; then hands over or gives back the others."""
        grace_s = self._settings.dispatcher.grace_s
        if self._attempts:
            log.info("stopping: %d jobs may finish within %.0f s", len(self._attempts), grace_s)
            await asyncio.wait(self._attempts, timeout=grace_s)
        await self._give_up_attempts()

    async def _give_up_attempts(self) -> None:
        """Also when a loop has failed: a machine is handed over only while its back-end is still open."""
        left = list(self._attempts)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=self._settings.dispatcher.finish_s)

    # -- beating ---------------------------------------------------------------------------------

    async def _extend_until(self, done: asyncio.Event) -> None:
        waker = asyncio.create_task(wake_on(done, self._control))
        try:
            while not done.is_set():
                try:
                    await self._holds.extend()
                    if await self._control.wait_control(self._instance, self._period_s):
                        self._rung.set()
                except QueueUnavailable as e:
                    log.warning("leases cannot be extended: %s", e)
                    await either(asyncio.sleep(PAUSE_S), done)
        finally:
            await end(waker)

    async def _beat_until(self, done: asyncio.Event) -> None:
        while not done.is_set():
            self._rung.clear()
            with suppress(QueueUnavailable):  # which the beat below tells
                await self._obey()
            await self._images.look()
            try:
                await self._queue.beat(self._record())
                await self._take_orders()
            except QueueUnavailable as e:
                log.warning("no beat: %s", e)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await either(self._rung.wait(), done)

    @property
    def _period_s(self) -> float:
        return self._settings.dispatcher.lease_s / 3

    async def _obey(self) -> None:
        """Does what an operator wants of this dispatcher. Raises QueueUnavailable."""
        orders = await self._queue.orders(self._install)
        size = self._size(orders.slots)
        if (orders.paused, size) != (self._slots.paused, self._slots.size):
            log.info("by an operator's order: %d slots%s", size, ", paused" if orders.paused else "")
        self._slots.resize(size)
        for slots in (self._slots, self._cores.turns):
            (slots.pause if orders.paused else slots.resume)()
        if self._resumed is not None and orders.resumed > self._resumed and self._breaker.shut:
            log.info("by an operator's order: jobs are taken again, whatever failed")
            self._breaker.reset()
        self._resumed = orders.resumed
        self._look_again()

    def _size(self, ordered: int | None) -> int:
        """How many slots there are, given what an operator has ordered."""
        if self._hosts is None:
            return ordered or self._settings.dispatcher.slots
        slots = max(1, self._hosts.slots())
        return min(ordered, slots) if ordered else slots

    async def _follow_hosts(self, done: asyncio.Event) -> None:
        """What has become of a host is known to all at once, and not only with the next beat."""
        while self._hosts is not None and not done.is_set():
            await either(self._hosts.changed.wait(), done)
            self._hosts.changed.clear()
            self._rung.set()

    async def _take_orders(self) -> None:
        orders, can = await self._queue.pool_orders(), self._vmms.capabilities
        policies = Policies(
            self._settings.pools,
            orders,
            vmms=self._vmms.name,
            prestart=can.prestart,
            usual=self._usual,
            reused=can.scaling is not None,
        )
        self._pool.follow({image: policies.of(image) for image in self._images.names})
        self._do_later(self._transfers.do_ordered())

    def _usual(self, image: str) -> MachineSpec:
        """The machine that a job of this image needs when it asks for nothing special."""
        limits = self._settings.limits.of(image)
        return MachineSpec(
            image=image,
            network=self._vmms.capabilities.network,
            cores=limits.cores,
            memory_bytes=limits.memory_bytes,
            processes=limits.processes,
            disk_bytes=limits.disk_bytes,
            cpuset=self._cores.ordinary,
        )

    def _record(self) -> DispatcherRecord:
        return DispatcherRecord(
            install=self._install,
            instance=self._instance,
            host=socket.gethostname(),
            vmms=self._vmms.name,
            version=__version__,
            images=tuple(self._images.names),
            loads_images=self._vmms.capabilities.load_images,
            slots=self._slots.size,
            busy=len(self._attempts),
            quiet_cores=self._cores.capacity,
            labels=self._offers.labels,
            paused=self._slots.paused,
            started_ms=self._started_ms,
            pools=self._pool.state(),
            healthy=self._images.healthy,
            problem=self._images.problem or "; ".join(self._breaker.shut.values()),
            shut=self._breaker.shut,
            engines=tuple(self._hosts.hosts()) if self._hosts is not None else (),
            ended=self._ended,
            lag_s=self._vitals.lag_s,
            rss_bytes=rss_bytes(),
        )

    # -- machines of an earlier life ---------------------------------------------------------------

    async def _adopt_or_remove(self) -> None:
        """Follows the jobs that an earlier dispatcher in this place left running; removes the rest."""
        try:
            async with asyncio.timeout(self._settings.dispatcher.machine_wait_s):
                machines = await self._vmms.get_vms()
        except TimeoutError as e:
            raise VmmsUnavailable("the engine does not say which machines there are") from e
        for machine in machines:
            if not await self._adopt(machine):
                self._pool.discard(machine)

    async def _adopt_late(self, machine: Machine) -> bool:
        """The same for one that turns up later; what this dispatcher has made is not taken from itself."""
        return machine.owner != self._instance and await self._adopt(machine)

    async def _adopt(self, machine: Machine) -> bool:
        """Follows the live job that runs on the machine; False if there is none. Raises QueueUnavailable."""
        found = await self._queue.adopt(machine.id, self._instance)
        if found is None:
            return False
        claim, since_start_s = found
        log.info("job %d: adopted on machine %s after %.0f s", claim.id, machine.id, since_start_s)
        hold = self._holds.add(claim)
        # It has its slots also where there are fewer: what runs already is not refused.
        slots, n = self._place(claim.spec)
        slots.take(n)
        self._spawn(hold, Attempt(self._bench, hold).adopt(machine, since_start_s), partial(slots.release, n))
        return True

    def _do_later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._later.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._later.discard(task)
            _report(task)

        task.add_done_callback(over)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s: %s", task.get_name(), error, exc_info=error)
