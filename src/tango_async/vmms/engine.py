"""One Docker engine: the few calls that the back-end needs, each ending in our errors.

The only module that knows aiodocker. It owns the connections and sees to it that none outlives the
call that made it: aiodocker's own streams keep theirs when a reader is cancelled or stops early. What
a container means is not known here (docker.py), nor is any call repeated.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiodocker
import aiohttp

from ..errors import ConfigError, ImageNotFound, MachineLost, VmmsError, VmmsUnavailable
from ..machine import Usage
from .engine_address import Sockets, Tls, advice, advice_of_tls, connector_of, usual_tls
from .engine_streams import Attached, Ending, payload

DEFAULT_HOST = "unix:///var/run/docker.sock"
SCHEMES = ("unix://", "tcp://", "http://", "https://")

MIN_API = (1, 40)
"""Docker 19.03, the first with all of: the `local` log, wait for the next exit, tmpfs options."""

PROBE_S = 5.0
"""How long an engine may take to answer at the start."""

AGAIN_S = 0.1

HALF_REMOVED = re.compile(r'getting container from store "([0-9a-f]{64})": container not known')
"""What Podman says to all who list containers, for one in whose removal it was killed."""

NOTICE_S = (0.03, 0.06, 0.12, 0.25)
"""Between two tries to remove a container that has just ended."""

_NO_LIMIT = aiohttp.ClientTimeout()
_UNREACHABLE = 900
"""The status that aiodocker gives to a connection that failed."""


@dataclass(frozen=True, slots=True)
class State:
    """A container as the engine sees it now."""

    status: str
    running: bool
    code: int
    out_of_memory: bool


@contextmanager
def ours(missing: type[VmmsError] = MachineLost, *, absent: tuple[int, ...] = (404,)) -> Iterator[None]:
    """Turns what aiodocker and aiohttp raise into our errors; `missing` is what the statuses `absent` mean here."""
    try:
        yield
    except aiodocker.DockerError as e:
        if e.status == _UNREACHABLE:
            raise VmmsUnavailable(e.message) from e
        raise (missing if e.status in absent else EngineError)(e.message) from e
    except (aiohttp.ClientError, OSError) as e:
        raise VmmsUnavailable(f"the Docker engine broke off: {e!r}") from e


class EngineError(VmmsError):
    """The engine refused, and says why."""

    @property
    def status(self) -> int:
        cause = self.__cause__
        return cause.status if isinstance(cause, aiodocker.DockerError) else 0


class FileMissing(EngineError):
    """The container, or the file in it, is not there."""


class Engine:
    """A client of one engine. Open it first, inside the running loop. Raises ConfigError for what is no address."""

    def __init__(self, host: str, *, away_s: float = 90.0, tls: Tls | None = None, name: str = "") -> None:
        self.host = host or DEFAULT_HOST
        if not self.host.startswith(SCHEMES):
            raise ConfigError(f"docker.host: {host!r} is neither unix://PATH nor tcp://HOST:PORT")
        self.cores = 0
        self.podman = False
        """Whether it is Podman's imitation of an engine."""
        self.away_s = away_s
        """One that is away for longer, as no restart takes, is an error."""
        self._tls = tls
        self._name = name or self.host
        """As it is told of in errors."""
        self._sockets = Sockets()
        self._session: aiohttp.ClientSession | None = None
        self._client: aiodocker.Docker | None = None

    @property
    def _docker(self) -> aiodocker.Docker:
        if self._client is None:
            raise VmmsUnavailable("the Docker engine's client is not open")
        return self._client

    async def open(self) -> None:
        """Connects. Raises VmmsUnavailable, saying what to install, start or permit."""
        self._tls = self._tls or usual_tls(self.host)
        url, connector = connector_of(self.host, self._tls, self._sockets)
        self._session = aiohttp.ClientSession(connector=connector)
        self._client = aiodocker.Docker(url, connector=connector, session=self._session)
        try:
            await self._probe()
        except BaseException:
            await self.close()
            raise

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                version = await self._docker.version()
                info = await self._docker.system.info()
            api = tuple(int(part) for part in version["ApiVersion"].split("."))
            self.cores = int(info["NCPU"])
            self.podman = any("Podman" in part.get("Name", "") for part in version.get("Components") or ())
        except TimeoutError as e:
            raise VmmsUnavailable(f"the Docker engine at {self._name} does not answer within {PROBE_S:.0f} s") from e
        except aiodocker.DockerError as e:
            raise VmmsUnavailable(advice_of_tls(self._name, self._tls, e) or advice(self._name, e)) from e
        except (aiohttp.ClientError, OSError) as e:
            said = advice_of_tls(self._name, self._tls, e)
            raise VmmsUnavailable(said or f"the Docker engine at {self._name} broke off: {e!r}") from e
        except (ValueError, TypeError, KeyError) as e:
            raise VmmsUnavailable(f"what answers at {self._name} is no Docker engine") from e
        if api < MIN_API:
            wanted = ".".join(map(str, MIN_API))
            raise VmmsUnavailable(
                f"the Docker engine at {self._name} speaks API {version['ApiVersion']}; {wanted} needed"
            )

    async def close(self) -> None:
        session, self._session, self._client = self._session, None, None
        if session is not None:
            await session.close()
            await self._sockets.closed()

    # containers

    async def create(self, name: str, config: Mapping[str, Any]) -> None:
        """Never pulls: an image that is not there is ImageNotFound."""
        with ours(ImageNotFound):
            await self._docker.containers.create(dict(config), name=name)

    async def start(self, name: str) -> None:
        with ours(EngineError):
            await self._docker.containers.container(name).start()

    async def attach(self, name: str, *, stdin: bool = False, output: bool = False) -> Attached:
        with ours():
            attached = Attached.to(self._docker, name, stdin=stdin, output=output)
            try:
                await attached.open()
            except BaseException:
                await attached.close()
                raise
        return attached

    async def ending(self, name: str) -> Ending:
        """Asks to be told of the container's next exit."""
        with ours():
            return Ending(await self._request("POST", f"containers/{name}/wait", {"condition": "next-exit"}))

    async def wait(self, name: str) -> None:
        """Returns when the container does not run. It may hang on over a cut network: ask `state` too."""
        with ours():
            await self._docker.containers.container(name).wait()

    async def state(self, name: str) -> State:
        with ours():
            state = (await self._docker.containers.container(name).show())["State"]
        if state["Status"] in ("removing", "dead"):
            raise MachineLost(f"the machine {name} is being removed")
        return State(state["Status"], state["Running"], state["ExitCode"], state["OOMKilled"])

    async def usage(self, name: str) -> Usage | None:
        """What a running container has used; None for one that has ended, whose counters are gone, and on Podman."""
        if self.podman:
            return None
        with ours():
            path = f"containers/{name}/stats"
            found = await self._docker._query_json(path, params={"stream": "false", "one-shot": "true"})
        counts = found["cpu_stats"]
        total_ns = counts["cpu_usage"]["total_usage"]
        return Usage(total_ns / 1e9, counts["throttling_data"]["throttled_time"] / 1e9) if total_ns else None

    async def remove(self, name: str, *, ended: bool = False) -> None:
        """With its processes and anonymous volumes; success if it is gone or going.

        Where the last process has `ended`, the engine gets a moment to notice: to kill a container costs it a
        process of its own.
        """
        # Podman's answer may never come, if nobody tells it of an end: the container's monitor is dead.
        for pause_s in NOTICE_S if ended and not self.podman else ():
            try:
                await self._remove(name, force=False)
                return
            except EngineError as e:
                if e.status != 409:
                    raise
            await asyncio.sleep(pause_s)
        await self._remove(name, force=True)

    async def _remove(self, name: str, *, force: bool) -> None:
        try:
            with ours():
                await self._docker.containers.container(name).delete(force=force, v=True)
        except MachineLost:
            return
        except EngineError as e:
            if self.podman and e.status == 500 and "state improper" in str(e):
                # Podman was about to kill it when it ended by itself.
                await asyncio.sleep(AGAIN_S)
                await self._remove(name, force=force)
            elif e.status != 409 or not force:
                raise

    async def containers(self, label: str) -> list[dict[str, Any]]:
        """All containers with that label (`key=value`), in any state."""
        try:
            return await self._listed(label)
        except EngineError as e:
            half_removed = HALF_REMOVED.search(str(e)) if self.podman else None
            if half_removed is None:
                raise
        # Nothing is left of it but its name, and Podman can list no container until that is gone, too.
        await self._remove(half_removed[1], force=True)
        return await self._listed(label)

    async def _listed(self, label: str) -> list[dict[str, Any]]:
        with ours():
            filters = json.dumps({"label": [label]})
            listed = await self._docker._query_json("containers/json", params={"all": 1, "filters": filters})
        return list(listed)

    async def logs(self, name: str, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """What the container has written, byte-exact, stdout and stderr in their order."""
        with ours(absent=(404, 409)):  # 409: it is being removed
            parameters = {"stdout": 1, "stderr": 1, "follow": int(follow)}
            response = await self._request("GET", f"containers/{name}/logs", parameters)
            try:
                pending = bytearray()
                async for chunk in response.content.iter_any():
                    pending += chunk
                    if data := payload(pending):
                        yield data
            finally:
                response.close()

    async def read(self, name: str, path: str, limit: int) -> bytes:
        """The start of the tar of one file of a container that need not run. Raises FileMissing."""
        with ours(FileMissing):
            response = await self._request("GET", f"containers/{name}/archive", {"path": path})
            try:
                data = b""
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) >= limit:
                        break
                return data[:limit]
            finally:
                response.close()

    # images

    async def images(self) -> dict[str, str]:
        """Every tag and the id of its image."""
        with ours():
            images = await self._docker.images.list()
        # Podman says `localhost/` of names without a registry, and takes them without it as well.
        return {
            tag.removeprefix("localhost/"): image["Id"]
            for image in images
            for tag in image["RepoTags"] or ()
            if "<none>" not in tag
        }

    async def image(self, name: str) -> dict[str, Any]:
        with ours(ImageNotFound):
            return await self._docker.images.inspect(name)

    async def load(self, archive: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
        """Loads a `docker save` archive; yields the tags, or ids where there are none, as they come."""
        with ours():
            response = await self._request("POST", "images/load", {"quiet": 1}, archive)
            try:
                async for line in response.content:
                    said = json.loads(line)
                    if "error" in said:
                        raise EngineError(str(said["error"]))
                    for sentence in str(said.get("stream", "")).splitlines():
                        if sentence.startswith("Loaded image"):
                            yield sentence.partition(": ")[2]
            finally:
                response.close()

    async def pull(self, name: str, credentials: Mapping[str, str]) -> None:
        """From the registry that the name begins with. `credentials` are username, password and serveraddress."""
        repository, tag = _split(name)
        with ours(EngineError):
            await self._registry("images/create", {"fromImage": repository, "tag": tag}, credentials)

    async def push(self, name: str, credentials: Mapping[str, str]) -> None:
        repository, tag = _split(name)
        with ours(ImageNotFound):
            await self._registry(f"images/{repository}/push", {"tag": tag}, credentials)

    async def _registry(self, path: str, parameters: dict[str, Any], credentials: Mapping[str, str]) -> None:
        packed = base64.urlsafe_b64encode(json.dumps(credentials).encode()).decode()
        response = await self._request("POST", path, parameters, headers={"X-Registry-Auth": packed})
        try:
            async for line in response.content:
                if error := json.loads(line).get("error"):
                    raise EngineError(str(error))
        finally:
            response.close()

    async def tag(self, image: str, name: str) -> None:
        repository, tag = _split(name)
        with ours(ImageNotFound):
            await self._docker.images.tag(image, repository, tag=tag)

    async def remove_image(self, name: str) -> None:
        with ours(ImageNotFound):
            await self._docker.images.delete(name)

    async def _request(
        self,
        method: str,
        path: str,
        parameters: dict[str, Any],
        body: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """A response whose body is still to come; the caller closes it.

        By aiodocker's private call, since its public ones leave nobody a response to close.
        """
        headers = {"Content-Type": "application/x-tar" if body else "application/json", **(headers or {})}
        chunked = True if body else None
        return await self._docker._do_query(
            path, method, params=parameters, data=body, headers=headers, timeout=_NO_LIMIT, chunked=chunked
        )


def _split(name: str) -> tuple[str, str]:
    """Repository and tag."""
    repository, _, tag = name.rpartition(":")
    return (repository, tag) if repository and "/" not in tag else (name, "latest")
