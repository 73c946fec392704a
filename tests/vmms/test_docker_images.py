"""Images that come as archives: one, named as was asked, with no trace of what else it brought."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from contracts.machines import Backend
from support.engine import Engine
from support.images import SAVED_HERE, chunks, saved, tar
from tango_async.errors import VmmsError


@pytest.fixture
def backend(docker_backend: Backend) -> Backend:
    return docker_backend


@pytest.fixture
def name(docker_engine: Engine) -> Iterator[str]:
    """A free name; every image of the test begins with it, and those that are ours are as before afterwards."""
    before = images(docker_engine)
    name = f"test-{uuid4().hex[:12]}"
    yield name
    for tag in images(docker_engine):
        if tag.startswith(name):
            docker_engine.call("DELETE", f"/images/{tag}")
    assert images(docker_engine) == before


def images(engine: Engine) -> dict[str, str]:
    """Those without a tag as well, and none that other tests use meanwhile."""
    ours = engine.get("/images/json", filters={"label": [SAVED_HERE]})
    named = {tag: image["Id"] for image in ours for tag in image["RepoTags"] or () if tag != "<none>:<none>"}
    return named | {image["Id"]: image["Id"] for image in ours if image["Id"] not in named.values()}


async def test_an_image_gets_the_name_that_was_asked(backend: Backend, name: str) -> None:
    await backend.vmms.load_image(name, chunks(saved((b"one", [f"{name}-other:v1"]))))
    names = await backend.vmms.get_images()
    assert name in names and f"{name}-other:v1" not in names


async def test_an_image_without_a_tag_gets_the_name(backend: Backend, name: str) -> None:
    await backend.vmms.load_image(f"{name}:v2", chunks(saved((b"one", []))))
    assert f"{name}:v2" in await backend.vmms.get_images()


async def test_an_image_of_several_tags_is_one(backend: Backend, docker_engine: Engine, name: str) -> None:
    await backend.vmms.load_image(name, chunks(saved((b"one", [f"{name}:latest", f"{name}:a", f"{name}-b:latest"]))))
    assert [tag for tag in images(docker_engine) if tag.startswith(name)] == [f"{name}:latest"]


async def test_a_new_build_replaces_the_old_one(backend: Backend, docker_engine: Engine, name: str) -> None:
    for content in (b"old", b"new", b"new"):
        await backend.vmms.load_image(name, chunks(saved((content, [f"{name}:latest"]))))
    assert len([tag for tag in images(docker_engine) if tag.startswith(name)]) == 1


async def test_an_archive_steals_no_other_images_name(backend: Backend, docker_engine: Engine, name: str) -> None:
    await backend.vmms.load_image(f"{name}-first", chunks(saved((b"one", []))))
    first = images(docker_engine)[f"{name}-first:latest"]
    await backend.vmms.load_image(f"{name}-second", chunks(saved((b"two", [f"{name}-first:latest"]))))
    now = images(docker_engine)
    assert now[f"{name}-first:latest"] == first != now[f"{name}-second:latest"]


async def test_two_images_are_refused_whole(backend: Backend, docker_engine: Engine, name: str) -> None:
    await backend.vmms.load_image(name, chunks(saved((b"good", []))))
    before = images(docker_engine)
    both = saved((b"one", [f"{name}:latest"]), (b"two", [f"{name}-two:latest"]))
    with pytest.raises(VmmsError, match="2 images"):
        await backend.vmms.load_image(name, chunks(both))
    with pytest.raises(VmmsError, match="2 images"):
        await backend.vmms.load_image(name, chunks(saved((b"three", []), (b"four", []))))
    assert images(docker_engine) == before


@pytest.mark.parametrize(
    "archive",
    [b"", b"no tar at all", tar({"etc/passwd": b"x"}), tar({"manifest.json": b"[]"}), saved((b"cut", []))[:3000]],
)
async def test_what_is_no_image_is_refused(backend: Backend, name: str, archive: bytes) -> None:
    with pytest.raises(VmmsError):
        await backend.vmms.load_image(name, chunks(archive))
    assert name not in await backend.vmms.get_images()


async def test_an_archive_that_breaks_off_is_refused(backend: Backend, name: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield saved((b"one", []))[:1000]
        raise ConnectionResetError

    with pytest.raises(VmmsError):
        await backend.vmms.load_image(name, broken())
    assert name not in await backend.vmms.get_images()
