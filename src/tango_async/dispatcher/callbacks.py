"""Delivers feedback to the callback URLs that jobs came with, at least once, in order of due time.

What is due, and when, is the queue's outbox; a delivery that is under way when this process dies is
due again after `hold`. Autolab's receiver decides the form: one part named `file` with a file name.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
import ssl
from contextlib import suppress
from uuid import uuid4

import aiohttp
from yarl import URL

from ..config import MOST_REDIRECTS, Settings
from ..destinations import allowance
from ..errors import QueueUnavailable
from ..files.base import FileStore
from ..model import Due
from ..queue.outbox import LONGEST_BACKOFF_S
from ..queue.redis import Queue

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Longest time between two looks into the outbox."""

BACKOFF_MAX_S = LONGEST_BACKOFF_S / 1.2


class Refused(Exception):
    """The receiver did not take it; says how."""


class Callbacks:
    """The deliverer of one dispatcher; any number may work on the same outbox."""

    def __init__(self, settings: Settings, queue: Queue, store: FileStore) -> None:
        self._settings = settings.callbacks
        self._queue = queue
        self._store = store
        self._allowed = allowance(self._settings.allow)

    async def run(self, done: asyncio.Event) -> None:
        """Delivers until told to stop; deliveries under way are then cut off, and made by the next one."""
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        trusted = aiohttp.TCPConnector(ssl=ssl.create_default_context())
        cookies = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=trusted, timeout=timeout, cookie_jar=cookies) as session:
            running: set[asyncio.Task[None]] = set()
            while not done.is_set():
                wait_s = LOOK_S
                try:
                    room = self._settings.concurrency - len(running)
                    for due in await self._queue.due(room, self._settings.hold_s) if room > 0 else ():
                        task = asyncio.create_task(self._deliver(session, due))
                        running.add(task)
                        task.add_done_callback(running.discard)
                    next_s = await self._queue.next_due_s()
                    wait_s = min(LOOK_S, max(next_s, 0.02)) if next_s is not None else LOOK_S
                except QueueUnavailable as e:
                    log.warning("callbacks wait: %s", e)
                with suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), wait_s)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _deliver(self, session: aiohttp.ClientSession, due: Due) -> None:
        try:
            said = await self._post(session, due, await self._body(due))
        except Exception as e:
            # Whatever it was, it counts as a try and comes to the horizon in the end.
            await self._put_off(due, str(e) or type(e).__name__)
        else:
            with suppress(QueueUnavailable):
                await self._queue.delivered(due.id, said)

    async def _put_off(self, due: Due, why: str) -> None:
        over = due.since_end_s >= self._settings.horizon_s
        wait_s = min(2.0 ** min(due.tries, 16), BACKOFF_MAX_S) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        log.warning("job %d: callback not delivered, %s: %s", due.id, "given up" if over else "will be repeated", why)
        with suppress(QueueUnavailable):
            await self._queue.defer(due.id, why[:200], None if over else wait_s)

    async def _body(self, due: Due) -> bytes:
        if not due.output_ref:
            return due.note.encode()
        output = await self._store.output(due.output_ref)
        return b"".join([chunk async for chunk in output.read()])

    async def _post(self, session: aiohttp.ClientSession, due: Due, body: bytes) -> str:
        boundary = uuid4().hex
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'
        data = part.encode() + body + f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Filename": due.output_name,
            "X-Tango-Job": str(due.id),
            "X-Tango-Attempt": str(due.attempt),
        }
        if self._settings.secret:
            digest = hmac.new(self._settings.secret.encode(), data, hashlib.sha256).hexdigest()
            headers["X-Tango-Signature"] = f"sha256={digest}"
        url = URL(due.url)
        for _ in range(MOST_REDIRECTS + 1):
            if not self._allowed(str(url)):
                raise Refused(f"{url.host} is not among callbacks.allow")
            async with session.post(url, data=data, headers=headers, allow_redirects=False) as answer:
                if 200 <= answer.status < 300:
                    # An unknown course is answered with a page and 200: that delivered nothing.
                    if answer.content_type == "text/html":
                        raise Refused(f"{answer.status} with an HTML page")
                    return str(answer.status)
                if answer.status not in (301, 302, 303, 307, 308) or "Location" not in answer.headers:
                    raise Refused(str(answer.status))
                url = url.join(URL(answer.headers["Location"]))
        raise Refused("too many redirects")
