"""Which images there are and where, and orders to pull and push them. `build` of machines.py loads an archive.

What an order comes to is told by every host for itself, and shown until the next one for the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiohttp import web

from ..errors import BadRequest
from ..model import PULL, PUSH, DispatcherRecord
from ..names import image_name
from . import answers, wire
from .fleet import lives
from .service import service_of


async def list_images(request: web.Request) -> web.Response:
    """Images by name, each with the places that have it; and the orders, with each place's word on them."""
    service = service_of(request)
    live = await service.fleet.live()
    images: dict[str, dict[str, str]] = {}
    for record in live:
        for place, had in _places(record):
            for image, number in had.items():
                images.setdefault(image, {})[place] = number
    orders = [
        _order(image, what, verdicts, live) for (image, what), verdicts in (await service.queue.build_orders()).items()
    ]
    found = wire.Images(
        status_msg="Found list of images",
        images=[wire.ImageEntry(name, images[name]) for name in sorted(images)],
        orders=sorted(orders, key=lambda order: (order.image, order.what)),
    )
    return answers.json(wire.encode(found))


async def pull(request: web.Request) -> web.Response:
    return await _move(request, PULL, "Pull ordered")


async def push(request: web.Request) -> web.Response:
    return await _move(request, PUSH, "Push ordered")


async def _move(request: web.Request, what: str, said: str) -> web.Response:
    service = service_of(request)
    image = image_name(request.match_info["image"].strip("/"))
    if not any(record.loads_images for record in await service.fleet.live()):
        raise BadRequest("No dispatcher that could do it is running")
    if what == PUSH and not await service.fleet.has(image):
        raise BadRequest("Invalid image name")
    await service.queue.move_image(image, what)
    return answers.json(wire.success(said))


def _places(record: DispatcherRecord) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Where a dispatcher's images are: its install, or install/engine. The id is empty where it is not known."""
    if record.engines:
        for engine in record.engines:
            yield f"{record.install}/{engine.name}", engine.images
    else:
        yield record.install, dict.fromkeys(record.images, "")


def _order(image: str, what: str, verdicts: Mapping[str, str], live: list[DispatcherRecord]) -> wire.ImageOrder:
    kind = what if what in (PULL, PUSH) else "load"
    hosts = {place: wire.OrderState(done=not problem, problem=problem) for place, problem in verdicts.items()}
    for record in live:
        mine = [place for place, _ in _places(record)] if record.loads_images and lives(record) else []
        if kind != PUSH or not any(place in verdicts for place in mine):
            for place in mine:
                hosts.setdefault(place, wire.OrderState(done=False, problem=""))
    return wire.ImageOrder(image=image, what=kind, hosts=hosts)
