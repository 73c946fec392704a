"""The clients: each job is sent as Autolab sends it, and polled until its feedback is there.

An addJob is repeated with the same body, up to four times, when its connection breaks or stays silent
for 30 s. A job counts as accepted when an answer with its id has come, and only then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from jobs import POISON, Kind, draw, fault, makefile
from settings import IMAGE, KEY
from stage import Stage

TRIES = 4
CLIENT_S = 30.0
PATIENCE_S = 240.0
"""How long a user presses the button again when a submission was refused."""

LONGEST_PAUSE_S = 5.0
"""Between two tries of that user, who waits longer each time."""

POLL_S = (0.2, 1.5)


@dataclass
class Submission:
    """One job, and what its client saw."""

    token: str
    kind: Kind
    callback: bool
    repeated: bool
    """Its addJob is sent once more after it was answered."""
    ids: list[int] = field(default_factory=list)
    """Every answer."""
    sent: int = 0
    asked_at: float = 0.0
    """When it was sent first, by the monotonic clock."""
    feedback: bytes = b""
    served: list[str] = field(default_factory=list)
    """The distinct feedbacks that poll gave, hashed; more than one is a job that ended twice."""
    cancelled: str = ""

    @property
    def id(self) -> int | None:
        return self.ids[0] if self.ids else None

    @property
    def lab(self) -> str:
        return f"lab{self.token[-1]}"

    @property
    def name(self) -> str:
        return f"soak_{self.kind.name}_{self.token}@example.edu"

    @property
    def output(self) -> str:
        return f"{self.token}.txt"

    @property
    def fault(self) -> str:
        assert self.id is not None
        return fault(self.kind, self.id, self.name, self.feedback) if self.feedback else "was never served"


class Refused(Exception):
    """An answer that is no success: Autolab shows it, and its user tries again."""


class Load:
    def __init__(self, stage: Stage, seed: int, jobs: int, seconds: float) -> None:
        self._stage = stage
        self._seconds = seconds
        chance = self._chance = random.Random(f"load {seed}")
        self.submissions = [
            Submission(f"{seed}x{i}", kind, chance.random() < 0.5, chance.random() < 0.15)
            for i, kind in enumerate(draw(chance, jobs))
        ]
        self._arrivals = sorted(chance.uniform(0, seconds) for _ in self.submissions)
        self._session: aiohttp.ClientSession | None = None
        self.refused = 0
        self.broken = 0

    @property
    def accepted(self) -> list[Submission]:
        return [s for s in self.submissions if s.ids]

    async def run(self, drain_s: float) -> None:
        """All clients, until each has its feedback or `drain_s` after the last arrival is over."""
        timeout = aiohttp.ClientTimeout(total=CLIENT_S)
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        begin = time.monotonic()
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session:
            tasks = [
                asyncio.create_task(self._client(submission, begin + at))
                for submission, at in zip(self.submissions, self._arrivals, strict=True)
            ]
            try:
                await asyncio.wait(tasks, timeout=self._seconds + drain_s)
            finally:
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            for ended in results:
                if isinstance(ended, Exception):
                    raise ended

    async def poll_again(self) -> None:
        """Once more, when all is over: what was served stays what it was."""
        timeout = aiohttp.ClientTimeout(total=CLIENT_S)
        room = asyncio.Semaphore(8)

        async def again(submission: Submission) -> None:
            async with room:
                await self._poll(submission)

        async with aiohttp.ClientSession(timeout=timeout) as self._session:
            await asyncio.gather(*(again(s) for s in self.accepted))

    async def dead(self) -> list[int]:
        """The ids that the servers list as dead."""
        async with aiohttp.ClientSession() as self._session:
            answer = await self._json("GET", f"/jobs/{KEY}/1/")
        return [int(job["id"]) for job in answer["jobs"]]

    async def _client(self, submission: Submission, at: float) -> None:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        if not await self._submit(submission):
            return
        if submission.kind.name == "replaced":
            await self._insist(lambda: self._upload(submission, f"{submission.token}.mk", POISON))
        if submission.kind.name == "cancelled":
            await asyncio.sleep(random.Random(submission.token).uniform(0, 3))
            await self._insist(lambda: self._cancel(submission))
        pause_s = POLL_S[0]
        while not submission.served:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.2, POLL_S[1])
            await self._poll(submission)

    async def _submit(self, submission: Submission) -> bool:
        own = (f"{submission.token}.mk", makefile(submission.kind, submission.token))
        for file in (own, *submission.kind.files):
            if not await self._insist(lambda file=file: self._upload(submission, *file)):  # type: ignore[misc]
                return False
        accepted = await self._insist(lambda: self._add(submission))
        # The inputs of a repeat are those of the first, or it would be another job.
        if accepted and submission.repeated and submission.kind.name != "replaced":
            await self._insist(lambda: self._add(submission))
        return accepted

    async def _insist(self, do: Callable[[], Awaitable[None]]) -> bool:
        """Again and again, as a user who sees an error; False if it never worked."""
        end, pause_s = time.monotonic() + PATIENCE_S, 0.5
        while time.monotonic() < end:
            try:
                await do()
            except Refused:
                self.refused += 1
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.broken += 1
            else:
                return True
            await asyncio.sleep(self._chance.uniform(0.5, 1.0) * pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
        return False

    async def _upload(self, submission: Submission, name: str, body: bytes) -> None:
        await self._json("GET", f"/open/{KEY}/{submission.lab}/")
        await self._json("POST", f"/upload/{KEY}/{submission.lab}/", data=body, headers={"Filename": name})

    async def _add(self, submission: Submission) -> None:
        receiver = self._stage.receiver
        body = json.dumps(
            {
                "image": IMAGE,
                "files": [
                    {"localFile": f"{submission.token}.mk", "destFile": "Makefile"},
                    *({"localFile": name, "destFile": name} for name, _ in submission.kind.files),
                ],
                "output_file": submission.output,
                "timeout": submission.kind.timeout_s,
                "max_kb": 0,
                "callback_url": receiver.url(submission.token) if submission.callback else "",
                "jobName": submission.name,
                "disable_network": True,
            }
            | self._stage.backend.asks(submission.token)
        ).encode()
        for left in reversed(range(TRIES)):
            submission.sent += 1
            submission.asked_at = submission.asked_at or time.monotonic()
            try:
                answer = await self._json("POST", f"/addJob/{KEY}/{submission.lab}/", data=body)
            except (aiohttp.ClientError, TimeoutError, OSError):
                if not left:
                    raise
                self.broken += 1
                await asyncio.sleep(0.2)
            else:
                submission.ids.append(int(answer["jobId"]))
                return

    async def _cancel(self, submission: Submission) -> None:
        try:
            await self._json("POST", f"/cancel/{KEY}/{submission.id}/")
            submission.cancelled = "yes"
        except Refused as e:
            if "already completed" not in str(e):
                raise
            # Also the answer to a repeat, when the first one worked and its answer was lost.
            submission.cancelled = "too late"

    async def _poll(self, submission: Submission) -> None:
        try:
            status, kind, body = await self._call("GET", f"/poll/{KEY}/{submission.lab}/{submission.output}")
        except (aiohttp.ClientError, TimeoutError, OSError):
            self.broken += 1
            return
        if status != 200:
            self.refused += 1
        elif kind != "application/json":
            sha = hashlib.sha256(body).hexdigest()
            if sha not in submission.served:
                submission.served.append(sha)
                submission.feedback = body

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """A success. Raises Refused with the answer."""
        status, _, body = await self._call(method, path, **options)
        answer: dict[str, Any] = json.loads(body)
        if status != 200 or answer["statusId"] < 0:
            raise Refused(f"{status} {answer['statusMsg']}")
        return answer

    async def _call(self, method: str, path: str, **options: Any) -> tuple[int, str, bytes]:
        assert self._session is not None
        url = self._chance.choice(self._stage.urls) + path
        async with self._session.request(method, url, **options) as answer:
            return answer.status, answer.content_type, await answer.read()
