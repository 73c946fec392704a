"""What operators see of the dispatchers and may order them while they run: to pause, and other numbers of slots.

An order is kept in Redis; the dispatcher is rung and does it at once, or when it starts again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..errors import BadRequest
from ..model import DispatcherRecord
from . import answers, wire
from .fleet import fails, lives
from .service import service_of

MAX_SLOTS = 1000
DEFAULT = "default"
"""In place of a number of slots: as many as the host's settings say."""

_SLOTS = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)


async def list_hosts(request: web.Request) -> web.Response:
    """Every dispatcher that ever published itself, the living ones first."""
    records = sorted(await service_of(request).fleet.all(), key=lambda r: (not lives(r), r.host, r.install))
    found = wire.Hosts(status_msg="Found list of hosts", hosts=[_entry(record) for record in records])
    return answers.json(wire.encode(found))


async def pause(request: web.Request) -> web.Response:
    queue = service_of(request).queue
    return await _order(request, "Paused", lambda install: queue.pause(install, True))


async def resume(request: web.Request) -> web.Response:
    queue = service_of(request).queue
    return await _order(request, "Resumed", lambda install: queue.pause(install, False))


async def set_slots(request: web.Request) -> web.Response:
    queue = service_of(request).queue
    raw = request.match_info["number"]
    if raw != DEFAULT and not (_SLOTS.fullmatch(raw) and int(raw) <= MAX_SLOTS):
        raise BadRequest(f"Bad number of slots: expected 1 to {MAX_SLOTS}, or {DEFAULT}")
    slots = None if raw == DEFAULT else int(raw)
    said = "Slots as in the settings" if slots is None else f"{slots} slots"
    return await _order(request, said, lambda install: queue.set_slots(install, slots))


async def _order(request: web.Request, said: str, give: Callable[[str], Awaitable[bool]]) -> web.Response:
    """Gives the order to the dispatcher of that install, or to all on the host of that name."""
    found = await service_of(request).fleet.find(request.match_info["host"])
    told = [record for record in found if await give(record.install)]
    if not told:
        return answers.json(wire.encode(wire.Answer(status_id=-2, status_msg="Host not found")))
    names = ", ".join(f"{r.host} ({r.install}{'' if lives(r) else ', down now'})" for r in told)
    return answers.json(wire.success(f"{said}: {names}"))


def _entry(record: DispatcherRecord) -> wire.HostEntry:
    return wire.HostEntry(
        install=record.install,
        host=record.host,
        state=_state(record),
        vmms=record.vmms,
        version=record.version,
        slots=record.slots,
        busy=record.busy,
        paused=record.paused,
        quiet_cores=record.quiet_cores,
        labels=record.labels,
        healthy=record.healthy,
        problem=record.problem,
        images=record.images,
        engines=[
            wire.EngineEntry(e.name, e.slots, e.busy, e.healthy, e.problem, sorted(e.images)) for e in record.engines
        ],
        age=round(record.age_s, 1),
    )


def _state(record: DispatcherRecord) -> str:
    if not lives(record):
        return "down"
    if not record.healthy:
        return "ill"
    if record.paused:
        return "paused"
    return "failing" if fails(record) else "ready"
