"""info, pool, prealloc and build: what dispatchers publish, and what is asked of them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any
from urllib.parse import quote

import pytest

from support.api import Api
from tango_async.config import Settings
from tango_async.model import EVERY_IMAGE, PoolOrder, PoolState

IMAGE = "autograding_image"
POOL = {"total": [1, 2], "free": [2]}


async def test_the_root_greets_as_tango_does(api: Api) -> None:
    reply = await api.get("/")
    assert (reply.status, reply.body) == (200, b"Hello, world! RESTful Tango here!\n")


async def test_info_counts_and_names_busy_jobs_threads(api: Api) -> None:
    await api.ready_lab()
    await api.add()
    await api.publish(IMAGE, busy=3)
    info = (await api.get("/info/test")).json["info"]
    assert info.pop("elapsed_secs") >= 0
    assert info == {
        "job_requests": 1, "job_retries": 0, "waitvm_timeouts": 0, "runjob_timeouts": 0,
        "copyin_errors": 0, "runjob_errors": 0, "copyout_errors": 0, "num_threads": 3,
            "unoffered": {},
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/pool/test", "/pool/test/", "/pool/test//"])
async def test_all_pools_are_listed(api: Api, path: str) -> None:
    assert (await api.get(path)).json == {"statusId": 0, "statusMsg": "Found all pools", "pools": {}}
    await api.publish(IMAGE)
    assert (await api.get(path)).json["pools"] == {IMAGE: POOL}


@pytest.mark.parametrize("path", [f"/pool/test/{IMAGE}", f"/pool/test/{IMAGE}/", f"/pool/test/{IMAGE}:latest/"])
async def test_one_pool_is_found(api: Api, path: str) -> None:
    await api.publish(IMAGE, "other")
    assert (await api.get(path)).json == {"statusId": 0, "statusMsg": "Found pool", "pools": {IMAGE: POOL}}


async def test_pools_of_all_dispatchers_are_one_and_nothing_leaks_between_answers(api: Api) -> None:
    await api.publish(IMAGE)
    await api.publish(IMAGE, install="b", pools={IMAGE: PoolState(total=(7,), free=()), "group/x": PoolState()})
    pools = (await api.get("/pool/test/")).json["pools"]
    assert (sorted(pools[IMAGE]["total"]), pools[IMAGE]["free"]) == ([1, 2, 7], [2])
    assert (await api.get("/pool/test/group/x/")).json["pools"] == {"group/x": {"total": [], "free": []}}
    assert "pools" not in (await api.get("/info/test/")).json


async def test_an_unknown_pool_is_an_error_with_all_pools(api: Api) -> None:
    await api.publish(IMAGE)
    assert (await api.get("/pool/test/nosuch/")).json == {
        "statusId": -1, "statusMsg": "Pool not found", "pools": {IMAGE: POOL},
    }  # fmt: skip
    assert (await api.get("/pool/test/..%2f/")).json["statusId"] == -1


@pytest.mark.parametrize(
    ("method", "body", "wanted"),
    [
        (
            "POST",
            b'{"vmms": "localDocker", "cores": 1, "memory": 512}',
            {"vmms": "localDocker", "cores": 1.0, "memory_mb": 512},
        ),
        ("GET", b"cores=1&memory=512", {"cores": 1.0, "memory_mb": 512}),
        ("GET", b"network=false", {"network": False}),
        ("POST", b"", {}),
        ("POST", None, {}),
        ("GET", None, {}),
        ("POST", b"{}", {}),
        ("POST", b'{"vmms": null, "cores": 0.5, "network": null, "x": []}', {"cores": 0.5}),
    ],
)
async def test_prealloc_takes_json_a_form_or_nothing(api: Api, method: str, body: bytes | None, wanted: Any) -> None:
    await api.publish(IMAGE)
    for slash in ("", "/"):
        reply = await api.send(method, f"/prealloc/test/{IMAGE}/3{slash}", body)
        assert reply.outcome == (0, "VMs preallocated")
    assert await api.queue.pool_orders() == {IMAGE: PoolOrder(size=3, **wanted)}


@pytest.mark.parametrize("number", ["-1", "x", "1001", "1.5", "9" * 50, "٣"])
async def test_a_bad_number_of_machines_is_refused(api: Api, number: str) -> None:
    await api.publish(IMAGE)
    reply = await api.post(f"/prealloc/test/{IMAGE}/{quote(number)}/")
    assert reply.outcome == (-1, "Bad number of machines: expected 0 to 1000")


@pytest.mark.parametrize(
    "body",
    [
        b"{x", b"[]", b'{"cores": "many"}', b"cores=many", b"\xff=1",
        b"cores=inf", b"cores=nan", b"cores=-1", b"memory=-1", b'{"cores": 1e300}', b'{"memory": 9999999999999}',
    ],
)  # fmt: skip
async def test_a_bad_prealloc_body_is_refused(api: Api, body: bytes) -> None:
    await api.publish(IMAGE)
    assert (await api.post(f"/prealloc/test/{IMAGE}/1/", body)).outcome[0] == -1


async def test_all_pools_are_scaled_and_scaled_no_more(api: Api) -> None:
    for slash in ("", "/"):
        assert (await api.post(f"/scale/test/1/4{slash}")).outcome == (0, "Pools scaled")
    assert await api.queue.pool_orders() == {EVERY_IMAGE: PoolOrder(size=1, max=4)}
    assert (await api.post("/scale/test/0/0/")).outcome == (0, "Pools are no longer scaled")
    assert await api.queue.pool_orders() == {}


@pytest.mark.parametrize("bounds", ["2/1", "-1/3", "0/1001", "x/2", "1/", "1.5/2", "٣/9"])
async def test_bad_bounds_are_refused(api: Api, bounds: str) -> None:
    assert (await api.post(f"/scale/test/{quote(bounds)}/")).json["statusId"] == -1
    assert await api.queue.pool_orders() == {}


async def test_a_pool_of_which_no_machine_can_be_made_says_so_and_no_more(api: Api) -> None:
    await api.publish(IMAGE, pools={IMAGE: PoolState(total=(1,), problem="exec /var/secret: not found")})
    pools = (await api.get("/pool/test/")).json["pools"]
    assert pools == {IMAGE: {"total": [1], "free": [], "problem": "No machine can be made now"}}


async def test_machines_of_an_unknown_image_are_refused(api: Api) -> None:
    assert (await api.post("/prealloc/test/nosuch/1/")).outcome == (-1, "Invalid image name")


ARCHIVE = b"not really a tar" * 100_000
REF = hashlib.md5(ARCHIVE).hexdigest()


async def build(api: Api, name: str = "group/img", header: str = "imageName", body: bytes = ARCHIVE) -> Any:
    return await api.post("/build/test/", body, f"{header}: {name}\r\n")


@pytest.mark.parametrize("header", ["imageName", "Imagename", "imagename"])
async def test_build_waits_for_a_dispatchers_verdict(api: Api, header: str) -> None:
    await api.publish(IMAGE, loads_images=True)
    building = asyncio.create_task(build(api, header=header))
    async with asyncio.timeout(60):
        while ("group/img", REF) not in await api.queue.build_orders():
            await asyncio.sleep(0.01)
    assert (await api.store.image(REF)).size == len(ARCHIVE)
    await api.queue.built("group/img", REF, "host", "")
    assert (await building).outcome == (0, "Docker image built")
    assert (await build(api)).outcome == (0, "Docker image built")


async def test_a_build_that_a_dispatcher_could_not_do_is_an_error(api: Api) -> None:
    await api.publish(IMAGE, loads_images=True)
    await api.queue.ask_build("group/img", REF)
    await api.queue.built("group/img", REF, "host", "no space")
    assert (await build(api)).outcome == (-1, "Image build failed")


@pytest.mark.parametrize("settings", [{"http": {"build_wait_s": 0.3}}], indirect=True)
async def test_a_verdict_that_takes_long_is_not_waited_for(api: Api) -> None:
    await api.publish(IMAGE, loads_images=True)
    assert (await build(api)).outcome == (0, "Image accepted")


async def test_nothing_is_read_if_no_dispatcher_loads_images(api: Api, settings: Settings) -> None:
    await api.publish(IMAGE)
    assert (await build(api)).outcome == (-1, "No dispatcher that could load an image is running")
    assert list((settings.store.labs / ".tango" / "images").iterdir()) == []


@pytest.mark.parametrize("name", ["Bad Name!", "../x", "", "a//b", "-x"])
async def test_a_bad_image_name_is_refused(api: Api, name: str) -> None:
    await api.publish(IMAGE, loads_images=True)
    assert (await build(api, name)).message.startswith("Bad image: ")
    assert (await api.post("/build/test", ARCHIVE)).outcome == (-1, "Missing imageName header")


async def test_while_redis_is_out_of_memory_no_machine_can_be_ordered_and_uploads_go_on(api: Api) -> None:
    await api.publish(IMAGE)
    await api.ready_lab()
    await api.queue._command("CONFIG", "SET", "maxmemory", 1)
    try:
        refused = await api.post(f"/prealloc/test/{IMAGE}/3/")
        assert (refused.status, refused.outcome[0]) == (503, -1)
        assert (await api.upload("hello.sh", b"echo another\n")).outcome[0] == 0
        assert (await api.get("/open/test/lab/")).json["files"]["hello.sh"] == hashlib.md5(
            b"echo another\n"
        ).hexdigest()
    finally:
        await api.queue._command("CONFIG", "SET", "maxmemory", 0)
    assert await api.queue.pool_orders() == {}
    assert (await api.post(f"/prealloc/test/{IMAGE}/3/")).outcome == (0, "VMs preallocated")
