"""What handlers work with, and the two questions each of them asks of a request: whose, and which lab."""

from __future__ import annotations

import hmac
import re
import time
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from ..config import Settings
from ..files.base import FileStore
from ..names import file_name
from ..queue.redis import Queue
from .fleet import Fleet


class Keys:
    """The API keys: who may come in, and what may not be shown."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = [(key, key.encode()) for key in keys]
        longest_first = sorted(keys, key=len, reverse=True)
        self._shown = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def match(self, word: str) -> str | None:
        """The key that the word is. Takes the same time for every word of one length."""
        given = word.encode(errors="surrogateescape")
        found = None
        for key, raw in self._keys:
            if hmac.compare_digest(raw, given):
                found = key
        return found

    def of(self, request: web.Request) -> str | None:
        """The key in the path, or else the one in the Authorization header."""
        found = self.match(request.match_info["key"])
        return self.bearer(request) if found is None else found

    def bearer(self, request: web.Request) -> str | None:
        """The key in the Authorization header."""
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        return self.match(token.strip()) if scheme.lower() == "bearer" else None

    def redact(self, text: str) -> str:
        return self._shown.sub("KEY", text)


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    queue: Queue
    store: FileStore
    fleet: Fleet
    keys: Keys
    started_s: float = field(default_factory=time.monotonic)


SERVICE = web.AppKey("service", Service)
KEY = web.RequestKey("key", str)


def service_of(request: web.Request) -> Service:
    return request.app[SERVICE]


@dataclass(frozen=True, slots=True)
class Lab:
    """A courselab as a request names it, and its name in the store."""

    courselab: str
    stored: str


def lab_of(request: web.Request) -> Lab:
    """Raises BadName."""
    courselab = file_name(request.match_info["courselab"], "courselab")
    return Lab(courselab, file_name(f"{request[KEY]}-{courselab}", "courselab"))
