"""Courselabs and their files: open, upload, poll."""

from __future__ import annotations

from aiohttp import web

from ..errors import NotFound
from ..model import JobRecord, JobState
from ..names import file_name
from . import answers, bodies, wire
from .service import lab_of, service_of


async def open_lab(request: web.Request) -> web.Response:
    new, files = await service_of(request).store.open_lab(lab_of(request).stored)
    message = "Created directory" if new else "Found directory"
    return answers.json(wire.encode(wire.Opened(status_msg=message, files=files)))


async def upload(request: web.Request) -> web.Response:
    service = service_of(request)
    http = service.settings.http
    lab = lab_of(request)
    name, body = await bodies.named_file(request, http.max_upload_bytes, http)
    changed = await service.store.put(lab.stored, name, body)
    return answers.json(wire.success("Uploaded file" if changed else "File exists"))


async def poll(request: web.Request) -> web.StreamResponse:
    """The feedback of the newest job that was added under this name, once that job has ended."""
    service = service_of(request)
    name = file_name(request.match_info["output_file"], "output file")
    job = await service.queue.job_of_output(lab_of(request).stored, name)
    if job is None or job.state is not JobState.DEAD:
        raise NotFound("Output file not found")
    if not job.output_ref:
        return _note(job)
    return await answers.feedback(request, await service.store.output(job.output_ref))


def _note(job: JobRecord) -> web.Response:
    """A job that died without a dispatcher has its feedback in its record."""
    return web.Response(body=job.note.encode(), headers={"Content-Type": answers.FILE_TYPE})
