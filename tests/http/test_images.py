"""Images as operators see them on every host, and orders to move them."""

from __future__ import annotations

from support.api import Api
from tango_async.model import PULL, PUSH, EngineState


def engine(name: str, *, healthy: bool = True, **images: str) -> EngineState:
    return EngineState(name=name, slots=2, busy=0, healthy=healthy, images=images)


async def publish(api: Api, install: str, **changes: object) -> None:
    await api.publish("lab", install=install, instance=f"{install}#1", loads_images=True, **changes)


async def test_an_image_is_shown_with_every_place_that_has_it(api: Api) -> None:
    await publish(api, "one")
    await publish(api, "many", engines=(engine("n0", lab="1", other="2"), engine("n1", healthy=False, lab="3")))
    found = (await api.get("/images/test/")).json
    assert found["images"] == [
        {"name": "lab", "hosts": {"one": "", "many/n0": "1", "many/n1": "3"}},
        {"name": "other", "hosts": {"many/n0": "2"}},
    ]
    assert found["orders"] == []


async def test_an_order_shows_each_hosts_word_and_who_has_said_none(api: Api) -> None:
    await publish(api, "many", engines=(engine("n0"), engine("n1"), engine("n2")))
    assert (await api.post("/images/test/pull/here:5000/lab/x:1/")).outcome == (0, "Pull ordered")
    await api.queue.built("here:5000/lab/x:1", PULL, "many/n0", "")
    await api.queue.built("here:5000/lab/x:1", PULL, "many/n1", "no such manifest")
    (order,) = (await api.get("/images/test/")).json["orders"]
    assert order == {
        "image": "here:5000/lab/x:1",
        "what": "pull",
        "hosts": {
            "many/n0": {"done": True, "problem": ""},
            "many/n1": {"done": False, "problem": "no such manifest"},
            "many/n2": {"done": False, "problem": ""},
        },
    }
    assert (await api.post("/images/test/pull/here:5000/lab/x:1")).outcome == (0, "Pull ordered")
    (again,) = (await api.get("/images/test/")).json["orders"]
    assert not any(state["done"] or state["problem"] for state in again["hosts"].values())


async def test_one_host_of_a_dispatcher_pushes(api: Api) -> None:
    await publish(api, "many", engines=(engine("n0", lab="1"), engine("n1", lab="1")))
    assert (await api.post("/images/test/push/lab/")).outcome == (0, "Push ordered")
    await api.queue.built("lab", PUSH, "many/n0", "")
    (order,) = (await api.get("/images/test/")).json["orders"]
    assert order["hosts"] == {"many/n0": {"done": True, "problem": ""}}


async def test_what_cannot_be_done_is_refused(api: Api) -> None:
    assert (await api.post("/images/test/pull/lab/")).outcome == (-1, "No dispatcher that could do it is running")
    await publish(api, "one")
    assert (await api.post("/images/test/push/other/")).outcome == (-1, "Invalid image name")
    assert (await api.post("/images/test/pull/a%20b/")).outcome[0] == -1
    assert (await api.get("/images/test/")).json["orders"] == []
