"""Erases what there is of one submitter: live jobs are ended, then jobs, outputs, inputs and uploads are removed.

A job's record goes last, since it is what finds the rest; so an erasure that was cut off is done by
doing it again. Callbacks that were still to be delivered are dropped: they would carry what is erased.
"""

from __future__ import annotations

import asyncio

from ..model import JobRecord, JobState
from ..names import is_job_of
from . import wire
from .keys import Access
from .service import Service

WAIT_S = 20.0
"""For running jobs to end; a client waits 30 s for its answer."""
LOOK_EVERY_S = 0.2


async def erase(service: Service, access: Access, address: str) -> wire.Erased:
    """What is of that submitter and the key may see. Raises StoreError, QueueUnavailable: then do it again."""
    await _end(service, await _jobs(service, access, address))
    theirs = await _jobs(service, access, address)
    dead = {job.id: job for job in theirs if job.state is JobState.DEAD}
    callbacks = files = size = 0
    # Also what is in their names in directories whose jobs are forgotten.
    labs = {lab for lab in await service.store.labs() if access.owns(lab)} | {job.spec.lab for job in dead.values()}
    retired = await service.queue.retire(list(dead), whatever=True)
    for gone in retired:
        callbacks += gone.had_callback
        await service.store.unpin(dead[gone.id].spec.pin)
        if gone.output_ref:
            [bytes_] = await service.store.output_sizes([gone.output_ref])
            await service.store.drop_output(gone.output_ref, gone.lab, gone.output_name)
            files, size = files + bool(bytes_), size + bytes_
    removed = await service.store.erase(address, sorted(labs), set(dead))
    await service.queue.forget([gone.id for gone in retired])
    return wire.Erased(
        jobs=len(retired),
        callbacks=callbacks,
        files=files + removed.files,
        bytes=size + removed.size,
        running=len(theirs) - len(dead),
    )


async def _jobs(service: Service, access: Access, address: str) -> list[JobRecord]:
    found: dict[int, JobRecord] = {}
    async for page in service.queue.every_job():
        for job in page:
            if is_job_of(address, job.spec.name, job.spec.output_name) and access.sees(job.spec):
                found[job.id] = job
    return list(found.values())


async def _end(service: Service, jobs: list[JobRecord]) -> None:
    """Cancels those that live, and waits for a while until they are dead."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    living = [job.id for job in jobs if job.state is not JobState.DEAD]
    for job_id in living:
        await service.queue.cancel(job_id)
    while living and loop.time() < until:
        now = [await service.queue.job(job_id) for job_id in living]
        living = [job.id for job in now if job is not None and job.state is not JobState.DEAD]
        if living:
            await asyncio.sleep(LOOK_EVERY_S)
