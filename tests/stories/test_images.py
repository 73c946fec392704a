"""Images are loaded, pulled and pushed on all hosts by an operator's order, and never because a job wants one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support.fixtures_docker import absent
from support.images import saved, variation
from support.netns import RemoteEngine
from support.registry import PASSWORD, USER, Registry
from support.service import SCRIPTS, Service

CREDENTIALS = """
[[docker.registries]]
address = "{address}"
user = "{user}"
password_file = "{file}"
"""


@pytest.fixture
def registry(engines: list[RemoteEngine]) -> Iterator[Registry]:
    if missing := Registry.missing():
        absent(missing)
    with tempfile.TemporaryDirectory(prefix="tg-") as directory:
        registry = Registry(Path(directory), engines[0].gateway)
        try:
            registry.start()
            yield registry
        finally:
            registry.stop()


@pytest.fixture
def credentials(registry: Registry, tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    return CREDENTIALS.format(address=registry.address, user=USER, file=file)


async def tango(service: Service, *words: str) -> tuple[int, str]:
    environment = {"TANGO_URL": service.url, "TANGO_KEY": "test", "PATH": "/usr/bin"}
    process = await asyncio.create_subprocess_exec(
        str(SCRIPTS / "tango"), *words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def having(service: Service, image: str) -> set[str]:
    """The engines that are told to have it."""
    _, said = await tango(service, "image", "list", "--json")
    found = {one["name"]: one["hosts"] for one in json.loads(said)["images"]}
    return {place.partition("/")[2] for place in found.get(image, {})}


async def healthy(service: Service) -> list[bool]:
    """Whether each engine of the dispatcher is; none before that has told of itself."""
    hosts = (await service.json("GET", "/hosts/test/"))["hosts"]
    return [engine["healthy"] for host in hosts for engine in host["engines"]]


async def until_had(service: Service, image: str, engines: set[str]) -> None:
    async with asyncio.timeout(90):
        while await having(service, image) != engines:
            await asyncio.sleep(0.2)


async def test_an_image_is_pushed_by_one_host_and_pulled_by_all(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any], registry: Registry, credentials: str
) -> None:
    await over(credentials)
    name = f"{registry.address}/course/lab:{uuid4().hex[:8]}"
    with variation(engines[1]) as made:
        repository, _, tag = name.rpartition(":")
        engines[1].call("POST", f"/images/{made}/tag", None, repo=repository, tag=tag)
        await until_had(service, name, {"n1"})
        code, said = await tango(service, "image", "push", name)
        assert code == 0 and said.count("done") == 1, said
        engines[1].call("DELETE", f"/images/{name}")
    await until_had(service, name, set())
    # A job that wants it does not bring it back.
    body = json.dumps({"image": name, "files": [], "output_file": "out", "jobName": "job"}).encode()
    assert (await service.json("POST", "/addJob/test/lab/", data=body))["statusId"] == -1
    code, said = await tango(service, "image", "pull", name)
    assert code == 0 and said.count("done") == 2, said
    assert await having(service, name) == {"n0", "n1"}
    await service.upload("lab", {"Makefile": b"autograde:\n\t@echo from the registry\n"})
    await service.add("lab", ["Makefile"], "out", image=name)
    assert (await service.poll("lab", "out")).endswith("from the registry\n")
    for engine in engines:
        engine.call("DELETE", f"/images/{name}", None, force="1")


async def test_what_a_registry_refuses_is_told_of_each_host(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any], registry: Registry, credentials: str
) -> None:
    await over(credentials)
    code, said = await tango(service, "image", "pull", f"{registry.address}/no/such:1")
    assert code == 1 and said.count("not found: manifest") == 2, said
    Path(credentials.rpartition('= "')[2].strip().strip('"')).write_text("wrong")
    code, said = await tango(service, "image", "pull", f"{registry.address}/no/such:1")
    assert code == 1 and ("unauthorized" in said or "no basic auth" in said), said
    code, said = await tango(service, "image", "push", "no-such-image")
    assert code == 2 and "Invalid image name" in said


async def test_an_archive_is_loaded_on_all_hosts_and_later_on_one_that_was_away(
    service: Service, engines: list[RemoteEngine], over: Callable[..., Any], tmp_path: Path
) -> None:
    await over()
    name, archive = f"loaded-{uuid4().hex[:8]}", tmp_path / "image.tar"
    archive.write_bytes(saved((uuid4().bytes, ["other:1"])))
    engines[0].cut()
    async with asyncio.timeout(90):
        while await healthy(service) != [False, True]:
            await asyncio.sleep(0.2)
    code, said = await tango(service, "image", "load", str(archive), "--name", name, "--wait", "0")
    assert code == 0, said
    await until_had(service, name, {"n1"})
    code, said = await tango(service, "image", "list")
    assert "to be done" in said and said.count(" done") >= 1, said
    engines[0].heal()
    await until_had(service, name, {"n0", "n1"})
    for engine in engines:
        engine.call("DELETE", f"/images/{name}")
