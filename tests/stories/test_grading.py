"""What the service is for: files go in, feedback comes back. Start reading here."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from stories.conftest import every_vmms
from support.examples import ASSIGNMENTS, EXAMPLES, declared, files_of, grade, scores
from support.service import PATIENCE_S, SCRIPTS, Service

STANDARD = 2**31 - 1
"""The mask of the signals below 32; the next ones are the C library's own."""


def gradable(vmms: str) -> list[str]:
    """Sandboxes and our virtual machines have the host's compiler, and a bare host has none."""
    if not vmms.endswith("Docker") and shutil.which("gcc") is None:
        return [name for name in ASSIGNMENTS if not name.startswith("c-")]
    return ASSIGNMENTS


@every_vmms
async def test_three_assignments_are_graded_by_two_processes(service: Service, vmms: str) -> None:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    jobs = [(assignment, submission) for assignment in gradable(vmms) for submission in declared(assignment)]
    feedbacks = await asyncio.gather(*[grade(service, *job) for job in jobs])
    assert len(jobs) >= 4
    for (assignment, submission), feedback in zip(jobs, feedbacks, strict=True):
        assert "Success: Autodriver returned normally" in feedback
        assert list(scores(feedback).values()) == declared(assignment)[submission]
        assert await service.poll(f"{assignment}-{submission}", "out.txt", slash=True) == feedback
    for process in service.processes:
        assert await process.stop() == 0


async def test_a_submission_that_never_ends_is_ended(service: Service, vmms: str) -> None:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    hanging = [grade(service, assignment, "hanging", timeout=2) for assignment in gradable(vmms)]
    for feedback in await asyncio.gather(*hanging):
        assert "Error: Job timed out after 2 seconds" in feedback
        assert "Autodriver: Job timed out after 2 seconds\n" in feedback


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
        async with asyncio.timeout(PATIENCE_S):
            assert await came.get() == feedback


async def test_everything_in_one_process_needs_no_redis(service: Service, sandbox: None) -> None:
    del service.environment["TANGO_REDIS_URL"]
    up = await service.run("tango", "up")
    first = await grade(service, "shell-topwords", "right")
    assert sum(scores(first).values()) == 100
    assert await up.stop() == 0
    # The history survives the restart, and ids go on.
    await service.run("tango", "up")
    assert await service.poll("shell-topwords-right", "out.txt") == first
    files = list(files_of("shell-topwords", "right"))
    assert await service.add("shell-topwords-right", files, "again.txt") > 1


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


async def test_signals_that_were_ignored_where_the_service_was_started_are_none_to_its_jobs(
    service: Service, vmms: str, tmp_path: Path
) -> None:
    """`nohup` and a shell's `&` start it so. A job could not undo it."""
    program = tmp_path / "in-the-background"
    program.write_text(f"#!/bin/sh\ntrap '' HUP INT QUIT TERM USR1\nexec {SCRIPTS}/tango-dispatcher\n")
    program.chmod(0o755)
    await service.run("tango-http")
    dispatcher = await service.run(str(program))
    dispatcher.popen.send_signal(signal.SIGHUP)
    await service.upload("lab", {"Makefile": b"autograde:\n\t@grep SigIgn /proc/self/status\n"})
    await service.add("lab", ["Makefile"], "out.txt")
    ignored = re.findall(r"SigIgn:\t(\w+)\n", await service.poll("lab", "out.txt"))
    assert [int(mask, 16) & STANDARD for mask in ignored] == [0]
