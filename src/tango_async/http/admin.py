"""What only keys with the scope admin reach: the outbox, sending again by hand, erasing a submitter's data.

Tango has none of it; the answers have Tango's form all the same.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from ..errors import NotFound
from ..model import CallbackRecord, CallbackState
from ..names import submitter
from ..queue.outbox import Resent
from . import answers, bodies, erasure, requests, wire
from .jobs import job_number
from .service import ACCESS, service_of

log = logging.getLogger(__name__)

_RESENT = {
    Resent.OK: (0, "The callback is sent again"),
    Resent.NOT_FOUND: (-2, "Job not found"),
    Resent.NOT_ENDED: (-1, "The job has not ended yet; its callback comes then"),
    Resent.NO_CALLBACK: (-1, "The job has no callback"),
}


async def list_callbacks(request: web.Request) -> web.Response:
    """Pending in order of due time, then the latest given up and delivered; `?unsent=1`: only those given up."""
    service = service_of(request)
    only_unsent = request.query.get("unsent", "0") not in ("", "0")
    found = await service.queue.callbacks(service.settings.http.list_limit)
    shown = [one for one in found if not only_unsent or one.state is CallbackState.UNSENT]
    entries = [wire.callback_entry(one) for one in shown if request[ACCESS].sees(one.spec)]
    answer = wire.Callbacks(status_msg="Found list of callbacks", callbacks=entries)
    return answers.json(await asyncio.to_thread(wire.encode, answer))


async def show_callback(request: web.Request) -> web.Response:
    """One, with what came of each try."""
    entry = wire.callback_entry(await _callback(request), log=True)
    return answers.json(wire.encode(wire.Callbacks(status_msg="Found callback", callbacks=[entry])))


async def resend(request: web.Request) -> web.Response:
    service, job_id = service_of(request), job_number(request)
    job = await service.queue.job(job_id)
    seen = job is not None and request[ACCESS].sees(job.spec)
    status_id, message = _RESENT[await service.queue.resend(job_id) if seen else Resent.NOT_FOUND]
    return answers.json(wire.encode(wire.Answer(status_id=status_id, status_msg=message)))


async def erase(request: web.Request) -> web.Response:
    service = service_of(request)
    http = service.settings.http
    asked = requests.read_json(await bodies.read(request, http.max_json_bytes, http), requests.EraseRequest)
    erased = await erasure.erase(service, request[ACCESS], submitter(asked.submitter))
    log.info("a submitter was erased: %s", erased)
    message = f"Erased {erased.jobs} jobs and {erased.files} files"
    if erased.running:
        message += f"; {erased.running} jobs have not ended yet: erase again"
    return answers.json(wire.encode(wire.ErasedAnswer(status_msg=message, erased=erased)))


async def _callback(request: web.Request) -> CallbackRecord:
    found = await service_of(request).queue.callback(job_number(request))
    if found is None or not request[ACCESS].sees(found.spec):
        raise NotFound("The job is not known, or has no callback")
    return found
