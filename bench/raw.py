"""The floors of a job: the same `make` by the engine alone, asked by its API, with nothing kept or promised."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import aiodocker
from host import IMAGE, MAKEFILE

Job = Callable[[], Awaitable[float]]
"""Runs one job; the seconds from when it was handed over to its end, without making ready and clearing away."""


def bare_sandbox(directory: Path) -> Job:
    """bubblewrap with nothing around it."""
    folder = directory / "bare"
    folder.mkdir()
    (folder / "Makefile").write_bytes(MAKEFILE)
    binds = [part for name in ("usr", "bin", "lib", "lib64") for part in ("--ro-bind-try", f"/{name}", f"/{name}")]
    command = ["bwrap", "--unshare-all", *binds, "--bind", str(folder), "/job", "--chdir", "/job", "make"]

    async def job() -> float:
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        if await process.wait():
            raise RuntimeError("bwrap failed")
        return time.perf_counter() - begun

    return job


def _tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("Makefile")
        member.size = len(MAKEFILE)
        archive.addfile(member, io.BytesIO(MAKEFILE))
    return packed.getvalue()


TAR = _tar()
HOST = {"CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"], "PidsLimit": 100}


def _config(script: str, network: str = "none", **more: object) -> dict[str, Any]:
    tmpfs = {"/home/autograde": "rw,exec,uid=1001,gid=1001,size=64m"}
    host = HOST | {"NetworkMode": network, "LogConfig": {"Type": "local"}, "Tmpfs": tmpfs}
    return {"Image": IMAGE, "Cmd": ["sh", "-c", script], "User": "1001:1001", "HostConfig": host} | more


def cold_container(docker: aiodocker.Docker, **more: object) -> Job:
    """create, start, wait. `more` are further settings of the container."""
    script = "cd /home/autograde && printf 'autograde:\\n\\t@echo hello\\n' > Makefile && make"

    async def job() -> float:
        begun = time.perf_counter()
        container = await docker.containers.create(_config(script, **more))
        await container.start()
        await _ended_well(container)
        taken = time.perf_counter() - begun
        await container.delete(force=True)
        return taken

    return job


class WarmContainers:
    """A job is fed to a container that was started before and waits for a tar on its standard input.

    One that is not prepared is made then, and only `at_once` counts that. `more` are further settings of it.
    """

    SCRIPT = "cd /home/autograde && tar xf - && exec make </dev/null"
    STREAMS: ClassVar = dict.fromkeys(("OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"), True)

    def __init__(self, docker: aiodocker.Docker, network: str = "none", **more: object) -> None:
        self._docker = docker
        self._config = _config(self.SCRIPT, network, **self.STREAMS, **more)
        self._ready: list[tuple[Any, Any]] = []

    async def prepare(self, count: int) -> None:
        while len(self._ready) < count:
            self._ready.append(await self._make())

    async def _make(self) -> tuple[Any, Any]:
        container = await self._docker.containers.create(self._config)
        stream = container.attach(stdin=True, stdout=True, stderr=True)
        await stream._init()
        await container.start()
        return container, stream

    async def __call__(self) -> float:
        container, stream = self._ready.pop() if self._ready else await self._make()
        begun = time.perf_counter()
        await stream.write_in(TAR)
        while await stream.read_out() is not None:
            pass
        await _ended_well(container)
        taken = time.perf_counter() - begun
        await stream.close()
        await container.delete(force=True)
        return taken


async def _ended_well(container: Any) -> None:
    if (await container.wait())["StatusCode"]:
        raise RuntimeError(f"a bare container failed: {await container.log(stdout=True, stderr=True)}")


async def at_once(job: Job, jobs: int, most: int) -> list[float]:
    """So many jobs, at most `most` at a time; seconds of each from the common beginning to its end, in their order."""
    begun, room = time.perf_counter(), asyncio.Semaphore(most)

    async def one() -> float:
        async with room:
            await job()
            return time.perf_counter() - begun

    return list(await asyncio.gather(*(one() for _ in range(jobs))))
