"""The images of one Docker engine: which there are, one more from an archive, who runs jobs in them."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress

from ..errors import VmmsError
from .engine import Engine, FileMissing

USER = "autograde"

NUMERIC_USER = "1001:1001"
"""Runs the jobs of an image that has no such user; the number that Tango's own images give it."""

_PASSWD_BYTES = 1024**2


class Images:
    """What is known of an engine's images; `throwaway` makes a container of one, never started."""

    def __init__(self, engine: Engine, throwaway: Callable[[str, str], Awaitable[str]]) -> None:
        self._engine = engine
        self._throwaway = throwaway
        self._users: dict[str, str] = {}
        self._looking = asyncio.Lock()
        self._loading = asyncio.Lock()

    async def names(self) -> list[str]:
        return sorted(await self.ids())

    async def ids(self) -> dict[str, str]:
        """By name."""
        return {tag.removesuffix(":latest"): image for tag, image in (await self._engine.images()).items()}

    async def find(self, name: str) -> str:
        """The image's id. Raises ImageNotFound."""
        image = await self._engine.image(name)
        return str(image["Id"])

    async def user(self, image: str, owner: str) -> str:
        """`uid:gid` of the one who runs jobs in the image of that id; never root's."""
        async with self._looking:
            if image not in self._users:
                self._users[image] = await self._look(image, owner)
        return self._users[image]

    async def _look(self, image: str, owner: str) -> str:
        container = await self._throwaway(image, owner)
        try:
            passwd = await self._engine.read(container, "/etc/passwd", _PASSWD_BYTES)
        except FileMissing:
            await self._engine.state(container)  # the file is missing, and not the container
            passwd = b""
        await self._engine.remove(container)
        return user_of(passwd)

    async def load(self, name: str, archive: AsyncIterator[bytes]) -> None:
        """The archive's one image becomes `name`; its own tags leave no trace, not even on other images."""
        async with self._loading:
            before = await self._engine.images()
            wanted = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
            came: dict[str, str] = {}
            try:
                async with aclosing(self._engine.load(archive)) as references:
                    async for reference in references:
                        came[reference] = await self.find(reference)
                images = set(came.values())
                if len(images) != 1:
                    raise VmmsError(f"the archive holds {len(images) or 'no'} images; one is needed")
                await self._engine.tag(images.pop(), name)
            except VmmsError:
                await self._put_back(came, before)
                raise
            came.pop(wanted, None)
            await self._put_back(came, before)
            if wanted in before:
                await self._forget(before[wanted])

    async def pull(self, name: str, credentials: Mapping[str, str]) -> None:
        async with self._loading:
            before = (await self.ids()).get(name)
            await self._engine.pull(name, credentials)
            if before is not None:
                await self._forget(before)

    async def push(self, name: str, credentials: Mapping[str, str]) -> None:
        await self._engine.push(name, credentials)

    async def _put_back(self, came: dict[str, str], before: dict[str, str]) -> None:
        """Loading moves tags: those that stood elsewhere return there, new ones go."""
        for reference, image in came.items():
            if reference in before:
                await self._engine.tag(before[reference], reference)
            elif reference != image:
                with suppress(VmmsError):
                    await self._engine.remove_image(reference)
            await self._forget(image)

    async def _forget(self, image: str) -> None:
        """Removes an image that has no name any more; one that a container uses goes with a later load."""
        with suppress(VmmsError):
            if not (await self._engine.image(image))["RepoTags"]:
                await self._engine.remove_image(image)


def user_of(passwd: bytes) -> str:
    """From the tar of /etc/passwd, which may be a link, cut off, or anything else."""
    with suppress(tarfile.TarError, OSError), tarfile.open(fileobj=io.BytesIO(passwd), mode="r|") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            for line in (file.read() if file else b"").decode(errors="replace").splitlines():
                name, *fields = line.split(":")
                if name == USER and len(fields) >= 3 and all(f.isascii() and f.isdigit() for f in fields[1:3]):
                    uid, gid = int(fields[1]), int(fields[2])
                    return f"{uid}:{gid}" if uid and gid else NUMERIC_USER
    return NUMERIC_USER
