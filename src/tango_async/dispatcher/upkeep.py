"""Work that one dispatcher does for all: abandoned leases, history, and files that nobody owns.

Who does it is decided by a short lock; a dispatcher that dies loses it within two periods.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..config import Settings
from ..errors import QueueUnavailable, StoreError
from ..files.base import FileStore
from ..queue.redis import Queue
from . import retention

log = logging.getLogger(__name__)

BATCH = 500
"""Feedbacks that the queue is asked about at a time."""


async def run(settings: Settings, queue: Queue, store: FileStore, instance: str, done: asyncio.Event) -> None:
    """Until told to stop: leases every `upkeep_s`; beside them what takes its time: history, files, courses."""
    period_s = settings.dispatcher.upkeep_s

    async def leases() -> None:
        if await queue.lead_upkeep(instance, period_s * 2):
            await _reap(queue)

    async def history() -> None:
        if await queue.lead_upkeep(instance, period_s * 2):
            await _forget(queue, store)

    async def files() -> None:
        if await queue.lead_upkeep(instance, period_s * 2):
            await _sweep(settings, queue, store)

    async def courses() -> None:
        if await queue.lead_upkeep(instance, period_s * 2):
            await retention.apply(settings, queue, store, done)

    async with asyncio.TaskGroup() as group:
        group.create_task(_every(period_s, leases, done))
        group.create_task(_every(period_s, history, done))
        group.create_task(_every(settings.dispatcher.file_upkeep_s, files, done))
        group.create_task(_every(settings.retention.period_s, courses, done))


async def _every(period_s: float, work: Callable[[], Awaitable[None]], done: asyncio.Event) -> None:
    while not done.is_set():
        try:
            await work()
        except QueueUnavailable as e:
            log.warning("no upkeep: %s", e)
        except StoreError as e:
            log.error("upkeep of the file store: %s", e)
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), period_s)


async def _reap(queue: Queue) -> None:
    while reaped := await queue.reap():
        for job_id, dead in reaped:
            now = "given up" if dead else "queued again"
            log.warning("job %d was held by no living dispatcher and is %s", job_id, now)


async def _forget(queue: Queue, store: FileStore) -> None:
    while expired := await queue.expired():
        await retention.forget(queue, store, [job_id for job_id, _ in expired])


async def _sweep(settings: Settings, queue: Queue, store: FileStore) -> None:
    age_s = settings.dispatcher.stray_age_s
    removed = await store.sweep(await queue.live_pins(), age_s)
    outputs = await store.old_outputs(age_s)
    for start in range(0, len(outputs), BATCH):
        for ref in await queue.unnamed(outputs[start : start + BATCH]):
            await store.drop_output(ref)
            removed += 1
    if removed:
        log.info("%d files that nobody owned were removed", removed)
