"""Jobs: addJob, the lists, what a running one has said so far, cancel."""

from __future__ import annotations

import asyncio
import logging
import re

from aiohttp import web

from ..errors import BadRequest, NotFound, QueueFull, StoreError, TangoError
from ..model import Forecast, JobRecord, JobState
from ..names import file_name
from ..queue.redis import Cancelled
from . import admission, answers, bodies, clouds, requests, wire
from .keys import Access
from .service import ACCESS, Service, lab_of, service_of

log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9]{1,18}", re.ASCII)
_HEADER_END = b"\n---\n"
"""Ends the lines that the dispatcher writes above a job's output."""

LOOK_THROUGH = 5
"""Lists of `list_limit` jobs that are looked through for the jobs of one key."""

_CANCEL_ANSWERS = {
    Cancelled.CANCELLED: (0, "Job cancelled"),
    Cancelled.REQUESTED: (0, "Job cancellation requested"),
    Cancelled.NOT_FOUND: (-2, "Job not found"),
    Cancelled.COMPLETED: (-3, "Job already completed"),
}


async def add_job(request: web.Request) -> web.Response:
    service = service_of(request)
    lab = lab_of(request)
    body = await bodies.read(request, service.settings.http.max_json_bytes, service.settings.http)
    asked = requests.read_json(body, requests.AddJob)
    spec = await admission.admit(service, lab, asked)
    fingerprint = admission.fingerprint(lab, body, spec, request.headers.get("Idempotency-Key"))
    try:
        added = await service.queue.add(spec, fingerprint=fingerprint, credentials=clouds.credentials(asked))
    except QueueFull:
        await service.store.unpin(spec.pin)
        raise
    # On any other error the job may have been added and need its pin; if not, the sweep finds it.
    if not added.new:
        await service.store.unpin(spec.pin)
    response = answers.json(wire.encode(wire.Added(status_msg="Job added", job_id=added.id)))
    if spec.callback_url and await answers.flushed(request, response):
        await _tell_answered(service, added.id)
    return response


async def _tell_answered(service: Service, job_id: int) -> None:
    """The callback waits for this: a client must know the id before it hears that the job has ended."""
    try:
        await service.queue.answered(job_id)
    except TangoError as e:
        log.warning("job %d: the callback waits for the longest time, since its answer was not noted: %s", job_id, e)


async def list_jobs(request: web.Request) -> web.Response:
    service = service_of(request)
    which = _number(request.match_info["number"], "list")
    jobs = await _visible_jobs(service, request[ACCESS], which) if which in (0, 1) else []
    forecasts = await _forecasts(service, jobs) if which == 0 else {}
    return answers.json(await asyncio.to_thread(wire.encode_jobs, jobs, forecasts))


async def _forecasts(service: Service, jobs: list[JobRecord]) -> dict[int, Forecast]:
    queued = [job.id for job in jobs if job.state is JobState.QUEUED]
    if not queued:
        return {}
    slots, classes = await service.fleet.offers(await service.queue.waiting())
    return await service.queue.forecasts(queued, slots, classes)


async def position(request: web.Request) -> web.Response:
    """What is foretold of one job; of one that does not wait, only its state."""
    service = service_of(request)
    job = await _visible_job(service, request[ACCESS], job_number(request))
    if job is None:
        raise NotFound("Job not found")
    forecast = (await _forecasts(service, [job])).get(job.id)
    told = wire.Position(status_msg="Found job", job_id=job.id, state=job.state, **wire.foretold(forecast))
    return answers.json(wire.encode(told))


async def _visible_jobs(service: Service, access: Access, which: int) -> list[JobRecord]:
    """Live or dead ones. Those of a key that does not see all are picked out of the next or newest few thousand."""
    queue, limit = service.queue, service.settings.http.list_limit
    if access.sees_all:
        return await queue.live(limit) if which == 0 else await queue.dead(limit)
    if which == 0:
        return [job for job in await queue.live(limit * LOOK_THROUGH) if access.sees(job.spec)][:limit]
    found: list[JobRecord] = []
    for page in range(LOOK_THROUGH):
        jobs = await queue.dead(limit, page * limit)
        found += [job for job in jobs if access.sees(job.spec)]
        if len(jobs) < limit or len(found) >= limit:
            break
    return found[:limit]


async def partial_output(request: web.Request) -> web.Response:
    service = service_of(request)
    job_id = job_number(request)
    job = await _visible_job(service, request[ACCESS], job_id)
    output = b""
    if job is not None and job.state is JobState.DEAD:
        output = await _final_output(service, job)
    elif job is not None:
        output = await service.queue.partial_output(job_id)
    text = output.decode(errors="replace")
    return answers.json(wire.encode(wire.Partial(status_msg="Partial output obtained", output=text)))


async def _final_output(service: Service, job: JobRecord) -> bytes:
    if not job.output_ref:
        return job.note.encode()
    limit = service.settings.limits.live_output_bytes
    try:
        whole = await answers.excerpt(await service.store.output(job.output_ref), limit)
    except (NotFound, StoreError):
        return b""
    header, end, output = whole.partition(_HEADER_END)
    return output if end and header.startswith(b"Autograder") else whole


async def cancel(request: web.Request) -> web.Response:
    """By output file as in Tango's forks, or by job id."""
    service = service_of(request)
    if "courselab" in request.match_info:
        name = file_name(request.match_info["output_file"], "output file")
        job = await service.queue.job_of_output(lab_of(request).stored, name)
    else:
        job = await _visible_job(service, request[ACCESS], job_number(request))
    result = Cancelled.NOT_FOUND if job is None else await service.queue.cancel(job.id)
    status_id, message = _CANCEL_ANSWERS[result]
    return answers.json(wire.encode(wire.Answer(status_id=status_id, status_msg=message)))


async def _visible_job(service: Service, access: Access, job_id: int) -> JobRecord | None:
    """None also if it is another key's."""
    job = await service.queue.job(job_id)
    return job if job is not None and access.sees(job.spec) else None


def job_number(request: web.Request) -> int:
    """The id in the path. Raises BadRequest."""
    return _number(request.match_info["id"], "job id")


def _number(raw: str, what: str) -> int:
    if not _ID.fullmatch(raw):
        raise BadRequest(f"Bad {what}: expected a number")
    return int(raw)
