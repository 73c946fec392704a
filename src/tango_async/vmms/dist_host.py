"""One of several engines: how it is reached, whether it is well, which images it has, as last seen.

It is looked at every few seconds, also while it is away, so that it comes back by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from .. import extras
from ..config import DockerHost, Settings
from ..errors import HostUnavailable, VmmsError, VmmsUnavailable
from .docker import Containers
from .engine import Engine
from .engine_address import Tls
from .engine_outputs import EngineOutputs
from .host_outputs import HostOutputs
from .outputs import Outputs

log = logging.getLogger(__name__)

SHORT_S, PERIOD_S = 0.2, 2.0
"""Between two looks at an engine at least, and at most."""

LOOK_S = 6.0
"""An engine that has not answered within this time is away."""


class Link(Protocol):
    """What makes an engine elsewhere answer on a socket here."""

    socket: Path

    async def keep(self) -> None:
        """Makes it, if it is not there. Raises VmmsUnavailable."""

    async def close(self) -> None: ...


class Host:
    """An engine. Whoever made it calls `look` again and again."""

    def __init__(
        self, one: DockerHost, settings: Settings, install: str, others: Collection[str], changed: asyncio.Event
    ) -> None:
        self.name = one.name
        self.where = f"docker.hosts: {one.name} ({one.url})"
        self.well = False
        self.problem = "not looked at yet"
        self.images: dict[str, str] = {}
        self.machines: set[str] = set()
        """Those that were made or adopted here, prepared ones included."""
        self._slots = one.slots
        self._changed = changed
        self._outages = 0
        self._opened = False
        self._looking = asyncio.Lock()
        self._doubted = asyncio.Event()
        self._looked = asyncio.Event()
        self._link = _link(one, settings)
        self._engine = _engine(one, settings, self._link)
        outputs = _outputs(one, settings, self._engine)
        self.driver = Containers(settings.docker, install, self._engine, outputs, one.name, others)

    @property
    def slots(self) -> int:
        return self._slots or max(1, self._engine.cores)

    async def look(self) -> None:
        """Asks the engine how it is; connects first, if need be."""
        async with self._looking:
            try:
                async with asyncio.timeout(LOOK_S):
                    if self._link is not None:
                        await self._link.keep()
                    if not self._opened:
                        await self.driver.open()
                        self._opened = True
                    self.driver.check()
                    images = await self.driver.image_ids()
            except (VmmsError, TimeoutError) as e:
                self._ill(str(e) or f"it does not answer within {LOOK_S:.0f} s")
            else:
                self._healthy(images)
        self._looked.set()
        self._looked = asyncio.Event()

    async def look_again(self) -> None:
        """Waits for a look that whoever tends it takes now."""
        self._doubted.set()
        await self._looked.wait()

    def _healthy(self, images: dict[str, str]) -> None:
        if not self.well:
            log.info("%s is well", self.where)
        if not self.well or images != self.images:
            self._changed.set()
        self.well, self.problem, self.images = True, "", images

    def _ill(self, problem: str) -> None:
        if self.problem != problem:
            log.error("%s gets no job until it is well: %s", self.where, problem)
        if self.well:
            self._changed.set()
            self._outages += 1
        self.well, self.problem = False, problem

    async def until_next_look(self) -> None:
        """Some seconds, or until a call has failed."""
        await asyncio.sleep(SHORT_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(PERIOD_S):
                await self._doubted.wait()
        self._doubted.clear()

    @contextmanager
    def asked(self) -> Iterator[Containers]:
        """For one call. What goes wrong while the engine is away is HostUnavailable, whatever it looks like.

        That holds for an outage that is over when the call fails, too: what it broke is no fault of a job.
        """
        outages = self._outages
        if not self._opened:
            raise HostUnavailable(f"{self.name}: {self.problem}")
        try:
            yield self.driver
        except VmmsUnavailable as e:
            self._doubted.set()
            raise HostUnavailable(f"{self.name}: {e}") from e
        except VmmsError as e:
            if self._outages != outages:
                raise HostUnavailable(f"{self.name} was away: {e}") from e
            raise

    async def close(self) -> None:
        await self.driver.close()
        if self._link is not None:
            await self._link.close()


def _link(one: DockerHost, settings: Settings) -> Link | None:
    if not one.url.startswith("ssh://"):
        return None
    try:
        from .dist_ssh import Tunnel
    except ImportError as e:
        raise VmmsUnavailable(f"docker.hosts: {one.name}: ssh:// needs more: {extras.install('asyncssh')}") from e
    return Tunnel(one, settings.state_dir / "ssh")


def _engine(one: DockerHost, settings: Settings, link: Link | None) -> Engine:
    url = one.url if link is None else f"unix://{link.socket}"
    tls = None
    if one.ca is not None and one.cert is not None and one.key is not None:
        tls = Tls(one.ca, one.cert, one.key, f"docker.hosts: {one.name}: ca, cert, key")
    return Engine(url, away_s=settings.docker.away_s, tls=tls, name=one.url)


def _outputs(one: DockerHost, settings: Settings, engine: Engine) -> Outputs:
    """Only an engine on a socket of this machine can see our files."""
    if one.url.startswith("unix://") and settings.docker.output != "engine":
        return HostOutputs(engine, settings.state_dir / f"outputs.{one.name}", settings.limits.output_stop_bytes)
    return EngineOutputs(engine)
