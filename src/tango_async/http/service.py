"""What handlers work with, and the two questions each of them asks of a request: whose, and which lab."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from aiohttp import web

from ..config import Settings
from ..files.base import FileStore
from ..names import file_name
from ..queue.redis import Queue
from .fleet import Fleet
from .keys import Access, Keys


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    queue: Queue
    store: FileStore
    fleet: Fleet
    keys: Keys
    started_s: float = field(default_factory=time.monotonic)


SERVICE = web.AppKey("service", Service)
ACCESS = web.RequestKey("access", Access)


def service_of(request: web.Request) -> Service:
    return request.app[SERVICE]


@dataclass(frozen=True, slots=True)
class Lab:
    """A courselab as a request names it, and its name in the store."""

    courselab: str
    stored: str


def lab_of(request: web.Request) -> Lab:
    """Raises BadName, Forbidden."""
    courselab = file_name(request.match_info["courselab"], "courselab")
    access = request[ACCESS]
    access.require_courselab(courselab)
    return Lab(courselab, file_name(f"{access.word}-{courselab}", "courselab"))
