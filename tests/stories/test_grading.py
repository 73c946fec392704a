"""What the service is for: files go in, feedback comes back. Start reading here."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from stories.conftest import EXAMPLES
from support.service import Service

ASSIGNMENTS = sorted(p.parent.name for p in EXAMPLES.glob("*/Makefile"))


def gradable(vmms: str) -> list[str]:
    """A sandbox has the host's compiler, and a bare host has none."""
    if vmms == "localSandbox" and shutil.which("gcc") is None:
        return [name for name in ASSIGNMENTS if not name.startswith("c-")]
    return ASSIGNMENTS


def files_of(assignment: str, submission: str) -> dict[str, bytes]:
    """What Autolab would upload: the assignment's files and one submission."""
    folder = EXAMPLES / assignment
    paths = [p for p in folder.iterdir() if p.is_file() and p.name != "README.md"]
    paths += [p for p in (folder / "submissions" / submission).iterdir() if p.is_file()]
    return {p.name: p.read_bytes() for p in paths}


def score(feedback: str) -> float:
    last = [line for line in feedback.splitlines() if line.strip()][-1]
    return float(sum(json.loads(last)["scores"].values()))


async def grade(service: Service, assignment: str, submission: str, **fields: object) -> str:
    lab, files = f"{assignment}-{submission}", files_of(assignment, submission)
    await service.upload(lab, files)
    await service.add(lab, list(files), "out.txt", **fields)
    return await service.poll(lab, "out.txt")


async def test_three_assignments_are_graded_by_two_processes(service: Service, vmms: str) -> None:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    for assignment in gradable(vmms):
        right, wrong = await asyncio.gather(grade(service, assignment, "right"), grade(service, assignment, "wrong"))
        assert "Success: Autodriver returned normally" in right
        assert score(right) == 100 > score(wrong) > 0
        assert await service.poll(f"{assignment}-right", "out.txt", slash=True) == right
        hanging = await grade(service, assignment, "hanging", timeout=2)
        assert "Error: Job timed out after 2 seconds" in hanging
        assert "Autodriver: Job timed out after 2 seconds\n" in hanging
    for process in service.processes:
        assert await process.stop() == 0


async def test_the_callback_brings_the_same_feedback_to_a_local_server(service: Service, sandbox: None) -> None:
    came: asyncio.Queue[str] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        form = await request.post()
        part = form["file"]
        assert isinstance(part, web.FileField)
        await came.put(part.file.read().decode())
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/cb", receive)
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    async with TestServer(app) as receiver:
        feedback = await grade(service, "python-calc", "right", callback_url=str(receiver.make_url("/cb?dave=x")))
        async with asyncio.timeout(10):
            assert await came.get() == feedback


async def test_everything_in_one_process_needs_no_redis(service: Service, sandbox: None) -> None:
    del service.environment["TANGO_REDIS_URL"]
    up = await service.run("tango", "up")
    assert score(await grade(service, "shell-topwords", "right")) == 100
    assert await up.stop() == 0
    # The history survives the restart, and ids go on.
    await service.run("tango", "up")
    assert score(await service.poll("shell-topwords-right", "out.txt")) == 100
    files = files_of("shell-topwords", "right")
    assert await service.add("shell-topwords-right", list(files), "again.txt") > 1


async def test_an_instructor_types_tango_run(service: Service, sandbox: None, tmp_path: Path) -> None:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    folder = EXAMPLES / "python-calc"
    submission = next((folder / "submissions" / "right").iterdir())
    process = await asyncio.create_subprocess_exec(
        str(Path(service.processes[0].popen.args[0]).with_name("tango")),  # type: ignore[index, arg-type]
        *("run", str(folder), "--with", str(submission), "--image", "autograding_image", "--json", "-j", "2"),
        env={**service.environment, "TANGO_URL": service.url, "TANGO_KEY": "test", "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err
    assert out.count(b'"exit_status": 0') == 2, out


@pytest.mark.parametrize("submission", ["right"])
async def test_what_the_log_says_holds_no_key(service: Service, sandbox: None, submission: str) -> None:
    service.environment["TANGO_KEYS"] = "test"
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    await grade(service, "shell-topwords", submission)
    listed = await service.json("GET", "/jobs/test/1/")
    assert "courselabs/KEY-shell-topwords-right/" in json.dumps(listed)
    for process in service.processes:
        assert not re.search(r"/test/|test-shell", process.said())
