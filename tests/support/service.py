"""The service as its operators run it: console scripts as processes, killed and stopped by signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

SCRIPTS = Path(sys.executable).parent
READY = re.compile(r"ready: (.*)")

PATIENCE_S = 90.0
"""How long anything may take on a machine that does much else."""


class Process:
    """One console script, its log in a file."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                [str(SCRIPTS / name), *arguments],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": "/nonexistent",
                    "TMPDIR": tempfile.gettempdir(),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self._from = 0

    async def ready(self, within_s: float = PATIENCE_S) -> str:
        """What the ready line says."""
        async with asyncio.timeout(within_s):
            while True:
                found = READY.search(self.said())
                if found:
                    return found[1]
                if self.popen.poll() is not None:
                    raise AssertionError(f"{self.name} ended: {self.said()}")
                await asyncio.sleep(0.02)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    async def stop(self, within_s: float = PATIENCE_S) -> int:
        """SIGTERM; its exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return await self.ended(within_s)

    async def ended(self, within_s: float = PATIENCE_S) -> int:
        async with asyncio.timeout(within_s):
            while (code := self.popen.poll()) is None:
                await asyncio.sleep(0.02)
        return code

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(PATIENCE_S)

    def cpu_s(self) -> float:
        """Processor time it has taken so far."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def addjob(lab: str, files: list[str], output: str, **fields: Any) -> bytes:
    """addJob's body, as Autolab sends it."""
    body = {
        "image": "autograding_image",
        "files": [{"localFile": name, "destFile": name} for name in files],
        "output_file": output,
        "timeout": 20,
        "max_kb": 0,
        "callback_url": "",
        "jobName": f"{lab}_1_student@example.edu",
        "disable_network": None,
        **fields,
    }
    return json.dumps(body).encode()


@dataclass
class Service:
    """A service of one test: its processes, and a client that sends what Autolab sends."""

    directory: Path
    environment: dict[str, str]
    url: str = ""
    key: str = "test"
    processes: list[Process] = field(default_factory=list)

    async def run(self, name: str, *arguments: str, **environment: str) -> Process:
        """Starts a console script and waits until it is ready."""
        log = self.directory / f"{name}-{len(self.processes)}.log"
        process = Process(name, list(arguments), {**self.environment, **environment}, log)
        self.processes.append(process)
        said = await process.ready()
        if found := re.search(r"http on (http://\S+?)(,|$)", said):
            self.url = found[1]
        return process

    async def end(self) -> None:
        """Stops what still runs, so that an embedded server ends with its last user."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)  # a test may have failed while it was stopped
                await process.stop()

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, str, bytes]:
        """(status, content type, body), on a connection of its own as Autolab's client has it."""
        headers = {"Connection": "close", "User-Agent": "Ruby", **options.pop("headers", {})}
        async with (
            aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
            session.request(method, self.url + path, headers=headers, **options) as answer,
        ):
            return answer.status, answer.content_type, await answer.read()

    async def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        status, kind, body = await self.call(method, path, **options)
        assert (status, kind) == (200, "application/json"), (status, kind, body)
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def upload(self, lab: str, files: dict[str, bytes]) -> None:
        opened = await self.json("GET", f"/open/{self.key}/{lab}/")
        assert opened["statusId"] == 0
        for name, body in files.items():
            answer = await self.json("POST", f"/upload/{self.key}/{lab}/", data=body, headers={"Filename": name})
            assert answer["statusId"] == 0, answer

    async def add(self, lab: str, files: list[str], output: str, **fields: Any) -> int:
        answer = await self.json("POST", f"/addJob/{self.key}/{lab}/", data=addjob(lab, files, output, **fields))
        assert answer["statusId"] == 0, answer
        return int(answer["jobId"])

    async def prealloc(self, number: int, within_s: float = PATIENCE_S) -> None:
        """Orders prepared machines; a dispatcher that is just ready may not have told its images yet."""
        async with asyncio.timeout(within_s):
            while (await self.json("POST", f"/prealloc/{self.key}/autograding_image/{number}/", data=b"{}"))[
                "statusId"
            ] != 0:
                await asyncio.sleep(0.05)

    async def prepared(self, number: int, within_s: float = PATIENCE_S) -> None:
        """Until so many machines wait, on all hosts and of all images."""

        async def waiting() -> int:
            return sum(len(pool["free"]) for pool in (await self.json("GET", f"/pool/{self.key}/"))["pools"].values())

        async with asyncio.timeout(within_s):
            while await waiting() != number:
                await asyncio.sleep(0.05)

    async def poll(self, lab: str, output: str, within_s: float = PATIENCE_S, *, slash: bool = False) -> str:
        """The feedback, as Autolab's client tells that it is there: its content type is not JSON."""
        async with asyncio.timeout(within_s):
            while True:
                status, kind, body = await self.call("GET", f"/poll/{self.key}/{lab}/{output}{'/' if slash else ''}")
                assert status == 200
                if kind != "application/json":
                    return body.decode(errors="replace")
                assert json.loads(body)["statusMsg"] == "Output file not found"
                await asyncio.sleep(0.02)
