"""Machines and images, as dispatchers publish them: info, pool, prealloc, scale, build."""

from __future__ import annotations

import asyncio
import time

import msgspec
from aiohttp import web

from ..errors import BadRequest
from ..model import EVERY_IMAGE, MAX_POOL, PoolOrder, PoolState
from ..names import image_name
from . import answers, bodies, requests, wire
from .service import Service, service_of

VERDICT_EVERY_S = 0.2


async def root(request: web.Request) -> web.Response:
    return web.Response(text="Hello, world! RESTful Tango here!\n", content_type="text/html", charset="UTF-8")


async def info(request: web.Request) -> web.Response:
    service = service_of(request)
    counters, waiting = await asyncio.gather(service.queue.counters(), service.queue.waiting())
    busy = sum(record.busy for record in await service.fleet.live())
    _, offered = await service.fleet.offers(waiting)
    figures = wire.Info(
        elapsed_secs=time.monotonic() - service.started_s,
        job_requests=counters.get("job_requests", 0),
        job_retries=counters.get("job_retries", 0),
        waitvm_timeouts=counters.get("waitvm_timeouts", 0),
        runjob_timeouts=counters.get("runjob_timeouts", 0),
        copyin_errors=counters.get("copyin_errors", 0),
        runjob_errors=counters.get("runjob_errors", 0),
        copyout_errors=counters.get("copyout_errors", 0),
        num_threads=busy,
        unoffered={name: n for name, n in waiting.items() if name not in offered},
    )
    return answers.json(wire.encode(wire.InfoFound(status_msg="Found info successfully", info=figures)))


async def pool(request: web.Request) -> web.Response:
    pools = {name: _entry(pool) for name, pool in (await _pools(service_of(request))).items()}
    wanted = request.match_info["image"].strip("/")
    if not wanted:
        return answers.json(wire.encode(wire.Pools(status_msg="Found all pools", pools=pools)))
    name = image_name(wanted)
    if name not in pools:
        missing = wire.Pools(status_id=wire.FAILED, status_msg="Pool not found", pools=pools)
        return answers.json(wire.encode(missing))
    return answers.json(wire.encode(wire.Pools(status_msg="Found pool", pools={name: pools[name]})))


async def _pools(service: Service) -> dict[str, PoolState]:
    pools: dict[str, PoolState] = {}
    for record in await service.fleet.live():
        for image, here in record.pools.items():
            so_far = pools.get(image, PoolState())
            pools[image] = PoolState(
                total=so_far.total + here.total, free=so_far.free + here.free, problem=so_far.problem or here.problem
            )
    return pools


def _entry(pool: PoolState) -> wire.PoolEntry:
    # What exactly the engine said is in the dispatcher's log: it may name things of the host.
    problem = "No machine can be made now" if pool.problem else msgspec.UNSET
    return wire.PoolEntry(total=pool.total, free=pool.free, problem=problem)


async def prealloc(request: web.Request) -> web.Response:
    """Says how many prepared machines every dispatcher should have of an image."""
    service = service_of(request)
    http = service.settings.http
    size = _machines(request.match_info["number"])
    image = image_name(request.match_info["image"])
    asked = requests.read_json_or_form(await bodies.read(request, http.max_json_bytes, http), requests.Prealloc)
    if not await service.fleet.has(image):
        raise BadRequest("Invalid image name")
    order = PoolOrder(size=size, vmms=asked.vmms, cores=asked.cores, memory_mb=asked.memory, network=asked.network)
    await service.queue.want_pool(image, order)
    return answers.json(wire.success("VMs preallocated"))


async def scale(request: web.Request) -> web.Response:
    """Says between which bounds every dispatcher should keep machines of the images without an order of their own."""
    low, high = _machines(request.match_info["low"]), _machines(request.match_info["high"])
    if low > high:
        raise BadRequest("Bad number of machines: the first one is the lower bound")
    order = PoolOrder(size=low, max=high) if high else None
    await service_of(request).queue.want_pool(EVERY_IMAGE, order)
    return answers.json(wire.success("Pools scaled" if high else "Pools are no longer scaled"))


def _machines(number: str) -> int:
    if not (number.isascii() and number.isdigit() and len(number) < 9 and int(number) <= MAX_POOL):
        raise BadRequest(f"Bad number of machines: expected 0 to {MAX_POOL}")
    return int(number)


async def build(request: web.Request) -> web.Response:
    """Takes an image archive and has the dispatchers load it, but answers before the client gives up."""
    service = service_of(request)
    http = service.settings.http
    name = request.headers.get("imageName")
    if name is None:
        raise BadRequest("Missing imageName header")
    image = image_name(name)
    if not any(record.loads_images for record in await service.fleet.live()):
        raise BadRequest("No dispatcher that could load an image is running")
    ref = await service.store.put_image(bodies.stream(request, http.max_image_bytes, http))
    await service.queue.ask_build(image, ref)
    verdict = await _verdict(service, image, ref)
    if verdict is None:
        return answers.json(wire.success("Image accepted"))
    if verdict:
        return answers.json(wire.failure("Image build failed"))
    return answers.json(wire.success("Docker image built"))


async def _verdict(service: Service, image: str, ref: str) -> str | None:
    """The first verdict on this archive; the same bytes sent again have theirs already."""
    loop = asyncio.get_running_loop()
    end = loop.time() + service.settings.http.build_wait_s
    while True:
        verdict = await service.queue.build_verdict(image, ref)
        if verdict is not None or loop.time() >= end:
            return verdict
        await asyncio.sleep(VERDICT_EVERY_S)
