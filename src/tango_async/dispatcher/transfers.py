"""Images that operators ordered to be loaded from an archive, pulled or pushed: done once on each host, and told.

No job causes a transfer. A host that is away does its part when it is back, a new one when it comes.
"""

from __future__ import annotations

import asyncio
import logging

from ..errors import NotFound, QueueUnavailable, StoreError, VmmsError
from ..files.base import FileStore
from ..model import PULL, PUSH
from ..queue.redis import Queue
from ..vmms.base import ManyHosts, Registries, Vmms
from .images import Images

log = logging.getLogger(__name__)

TRANSFER_S = 1800.0
"""Longest time for one."""


class Transfers:
    """Of one dispatcher, on all its hosts."""

    def __init__(self, queue: Queue, store: FileStore, vmms: Vmms, images: Images, install: str) -> None:
        self._queue = queue
        self._store = store
        self._vmms = vmms
        self._images = images
        self._install = install
        self._under_way: set[tuple[str, str, str]] = set()

    async def do_ordered(self) -> None:
        """Every order that has no verdict of a host yet."""
        if not self._vmms.capabilities.load_images:
            return
        try:
            orders = await self._queue.build_orders()
            wanted = [
                self._do_on(host, image, what)
                for (image, what), verdicts in orders.items()
                for host in self._hosts(image, what)
                if self._place(host) not in verdicts and (image, what, host) not in self._under_way
            ]
            await asyncio.gather(*wanted)
        except QueueUnavailable as e:
            log.warning("image orders cannot be read or answered: %s", e)

    def _hosts(self, image: str, what: str) -> list[str]:
        """Those that are to do it now: all that are well; of those that could push an image, one."""
        if not isinstance(self._vmms, ManyHosts):
            return [""]
        well = [host for host in self._vmms.hosts() if host.healthy]
        having = [host.name for host in well if image in host.images]
        return having[:1] if what == PUSH and having else [host.name for host in well]

    def _place(self, host: str) -> str:
        return f"{self._install}/{host}" if host else self._install

    async def _do_on(self, host: str, image: str, what: str) -> None:
        self._under_way.add((image, what, host))
        try:
            await self._queue.built(image, what, self._place(host), await self._try_on(host, image, what))
        finally:
            self._under_way.discard((image, what, host))

    async def _try_on(self, host: str, image: str, what: str) -> str:
        """Why it came to nothing; empty if it did not."""
        named = f"image {image}{f' on {host}' if host else ''}"
        kind = what if what in (PULL, PUSH) else "load"
        try:
            async with asyncio.timeout(TRANSFER_S):
                await self._transfer(host, image, what)
            if kind != PUSH:
                await self._images.replaced(image)
        except (VmmsError, StoreError, NotFound, TimeoutError) as e:
            log.error("%s: %s came to nothing: %s", named, kind, str(e) or "too slow")
            return str(e) or f"{kind} took too long"
        log.info("%s: %s is done", named, kind)
        return ""

    async def _transfer(self, host: str, image: str, what: str) -> None:
        if what in (PULL, PUSH):
            if not isinstance(self._vmms, Registries):
                raise VmmsError(f"{self._vmms.name} knows no registries")
            await (self._vmms.pull_image if what == PULL else self._vmms.push_image)(image, host)
            return
        archive = await self._store.image(what)
        if host and isinstance(self._vmms, ManyHosts):
            await self._vmms.load_on(host, image, archive.read())
        else:
            await self._vmms.load_image(image, archive.read())
