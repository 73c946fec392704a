"""Autolab's side of a callback, on bad days: it fails, hangs, redirects, hangs up, shows a page, and then takes it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field

from aiohttp import web

SECRET = "soak-secret"
MOODS = [
    (50, ()),
    (10, ("fail",)),
    (5, ("fail", "fail")),
    (8, ("hang",)),
    (10, ("redirect",)),
    (5, ("page",)),
    (6, ("reset",)),
    (6, ("fail", "hang", "redirect")),
]
"""Weight, and what comes before a callback is taken."""

HANG_S = 6.0
"""Longer than the service waits."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One callback that was taken."""

    at: float
    job_id: int
    sha: str
    signed: bool


@dataclass
class Receiver:
    seed: int
    taken: dict[str, list[Delivery]] = field(default_factory=lambda: defaultdict(list))
    tried: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    first_at: dict[str, float] = field(default_factory=dict)
    port: int = 0
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/callback/{token}", self._come)
        app.router.add_post("/moved/{token}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def url(self, token: str) -> str:
        return f"http://127.0.0.1:{self.port}/callback/{token}?dave=x"

    def _moods(self, token: str) -> tuple[str, ...]:
        chance = random.Random(f"{self.seed} {token}")
        return chance.choices([moods for _, moods in MOODS], [weight for weight, _ in MOODS])[0]

    async def _come(self, request: web.Request) -> web.Response:
        token = request.match_info["token"]
        self.first_at.setdefault(token, time.monotonic())
        moods, tries = self._moods(token), self.tried[token]
        self.tried[token] += 1
        if tries >= len(moods):
            return await self._take(request)
        await request.read()
        match moods[tries]:
            case "fail":
                return web.Response(status=500)
            case "hang":
                await asyncio.sleep(HANG_S)
                return web.Response(status=500)
            case "redirect":
                return web.Response(status=302, headers={"Location": f"/moved/{token}"})
            case "page":
                return web.Response(text="<p>No such course", content_type="text/html")
            case _:
                assert request.transport is not None
                request.transport.abort()
                return web.Response(status=500)

    async def _take(self, request: web.Request) -> web.Response:
        raw = await request.read()
        boundary = request.headers["Content-Type"].partition("boundary=")[2].encode()
        part = raw.removesuffix(b"\r\n--" + boundary + b"--\r\n").partition(b"\r\n\r\n")[2]
        digest = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
        signed = request.headers.get("X-Tango-Signature") == f"sha256={digest}"
        delivery = Delivery(
            time.monotonic(), int(request.headers["X-Tango-Job"]), hashlib.sha256(part).hexdigest(), signed
        )
        self.taken[request.match_info["token"]].append(delivery)
        return web.Response(status=204)
