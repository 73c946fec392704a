"""Is this process alive, and could it take a job now? For load balancers and supervisors, without a key.

The answers name no host, path or key; what is wrong in detail is in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from ..errors import QueueUnavailable, StoreError, StoreFull, StoreUnavailable
from ..files.base import FileStore
from ..queue.redis import Queue
from . import answers

log = logging.getLogger(__name__)

WITHIN_S = 1.0
FRESH_S = 1.0
"""Anybody may ask, and so an answer serves everyone for so long: the store's costs an fsync."""

OK = "ok"


class Check:
    """One question, asked at most once in FRESH_S and never twice at a time, since a disk may hang."""

    def __init__(self, what: str, ask: Callable[[], Awaitable[object]]) -> None:
        self._what = what
        self._ask = ask
        self._said = OK
        self._task: asyncio.Task[str] | None = None
        self._asked_at = 0.0

    async def answer(self) -> str:
        """OK, or what is wrong."""
        now = asyncio.get_running_loop().time()
        if self._task is None or (self._task.done() and now - self._asked_at >= FRESH_S):
            self._asked_at = now
            self._task = asyncio.create_task(self._try())
        done, _ = await asyncio.wait([self._task], timeout=WITHIN_S)
        return self._task.result() if done else self._say(f"no answer within {WITHIN_S:.0f} s")

    async def _try(self) -> str:
        try:
            await self._ask()
        except (QueueUnavailable, StoreUnavailable) as e:
            return self._say("cannot be reached", e)
        except StoreFull as e:
            return self._say("has no space left", e)
        except StoreError as e:
            return self._say("cannot be written", e)
        return self._say(OK)

    def _say(self, said: str, why: Exception | None = None) -> str:
        if said != self._said:
            log.log(logging.INFO if said == OK else logging.ERROR, "the %s: %s", self._what, why or said)
        self._said = said
        return said


class Readiness:
    """Both halves of what an addJob needs."""

    def __init__(self, queue: Queue, store: FileStore) -> None:
        self._checks = {"queue": Check("queue", queue.open), "store": Check("file store", store.check)}

    async def look(self) -> dict[str, str]:
        said = await asyncio.gather(*(check.answer() for check in self._checks.values()))
        return dict(zip(self._checks, said, strict=True))


READINESS = web.AppKey("readiness", Readiness)


async def healthz(request: web.Request) -> web.Response:
    """200 as long as the event loop turns."""
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    """200 if a job could be taken now, else 503; with each check's word."""
    checks = await request.app[READINESS].look()
    ready = all(said == OK for said in checks.values())
    body = json.dumps({"ready": ready, "checks": checks}).encode() + b"\n"
    return answers.json(body, status=200 if ready else 503)
