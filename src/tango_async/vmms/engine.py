"""One Docker engine: the few calls that the back-end needs, each ending in our errors.

The only module that knows aiodocker. It owns the connections and sees to it that none outlives the
call that made it: aiodocker's own streams keep theirs when a reader is cancelled or stops early. What
a container means is not known here (docker.py), nor is any call repeated.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import getpass
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import aiodocker
import aiohttp
from aiodocker.stream import Stream

from ..errors import ConfigError, ImageNotFound, MachineLost, VmmsError, VmmsUnavailable
from ..model import Usage

DEFAULT_HOST = "unix:///var/run/docker.sock"
SCHEMES = ("unix://", "tcp://", "http://", "https://")

MIN_API = (1, 40)
"""Docker 19.03, the first with all of: the `local` log, wait for the next exit, tmpfs options."""

PROBE_S = 5.0
"""How long an engine may take to answer at the start."""

SILENCE_S = 15
"""A connection whose other end the network has not heard for so long is broken."""

LEAVE_S = 1.0
AGAIN_S = 0.1

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
        self._sockets = _Sockets()
        self._session: aiohttp.ClientSession | None = None
        self._client: aiodocker.Docker | None = None

    @property
    def _docker(self) -> aiodocker.Docker:
        if self._client is None:
            raise VmmsUnavailable("the Docker engine's client is not open")
        return self._client

    async def open(self) -> None:
        """Connects. Raises VmmsUnavailable, saying what to install, start or permit."""
        url, connector = _connector(self.host, self._tls, self._sockets)
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
            raise VmmsUnavailable(self._of_tls(e) or _advice(self._name, e)) from e
        except (aiohttp.ClientError, OSError) as e:
            raise VmmsUnavailable(self._of_tls(e) or f"the Docker engine at {self._name} broke off: {e!r}") from e
        except (ValueError, TypeError, KeyError) as e:
            raise VmmsUnavailable(f"what answers at {self._name} is no Docker engine") from e
        if api < MIN_API:
            wanted = ".".join(map(str, MIN_API))
            raise VmmsUnavailable(
                f"the Docker engine at {self._name} speaks API {version['ApiVersion']}; {wanted} needed"
            )

    def _of_tls(self, error: BaseException | None) -> str:
        """What to look at, if that is why; else empty."""
        while error is not None:
            if isinstance(error, ssl.SSLCertVerificationError):
                file = self._tls.ca if self._tls is not None else "the usual authorities"
                return f"the Docker engine at {self._name} has a certificate that ca ({file}) does not know: {error}"
            if isinstance(error, ssl.SSLError):
                file = self._tls.cert if self._tls is not None else "none"
                return f"the Docker engine at {self._name} does not take our certificate, cert ({file}): {error}"
            error = error.__cause__ or error.__context__
        return ""

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
            stream = self._docker.containers.container(name).attach(stdin=stdin, stdout=output, stderr=output)
            attached = Attached(stream)
            try:
                await stream.__aenter__()
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

    async def remove(self, name: str) -> None:
        """With its processes and anonymous volumes; success if it is gone or going."""
        try:
            with ours():
                await self._docker.containers.container(name).delete(force=True, v=True)
        except MachineLost:
            return
        except EngineError as e:
            if self.podman and e.status == 500 and "state improper" in str(e):
                # Podman was about to kill it when it ended by itself.
                await asyncio.sleep(AGAIN_S)
                await self.remove(name)
            elif e.status != 409:
                raise

    async def containers(self, label: str) -> list[dict[str, Any]]:
        """All containers with that label (`key=value`), in any state."""
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


class Attached:
    """A container's standard input or output, as it happens."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._first = b""

    async def write(self, data: bytes) -> None:
        """Waits while the engine does not take more. Raises MachineLost when it takes none any more."""
        try:
            await self._stream.write_in(data)
        except (aiohttp.ClientError, OSError, RuntimeError, AssertionError, AttributeError) as e:
            raise MachineLost("the machine takes no more input") from e

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more: the container has ended, or the engine was away."""
        response = self._stream._resp
        connection = response.connection if response is not None else None
        transport = connection.transport if connection is not None else None
        return transport is None or transport.is_closing()

    async def begins(self) -> bool:
        """Waits for the first bytes, which `chunks` gives later. False if the stream ends without any."""
        with suppress(aiohttp.ClientError, OSError):
            while not self._first and (message := await self._stream.read_out()) is not None:
                self._first = message.data
        return bool(self._first)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Ends with the stream, for whatever reason: only Ending tells a whole output from a cut one."""
        if self._first:
            yield self._first
        with suppress(aiohttp.ClientError, OSError):
            while (message := await self._stream.read_out()) is not None:
                yield message.data

    async def close(self) -> None:
        """What was written is still delivered, and then the end of the file."""
        # Stream.close asserts that there is a connection; a failed one has none.
        with suppress(AssertionError, AttributeError):
            await self._stream.close()


class Ending:
    """The engine's promise to tell of an exit, kept by the very process that serves an attached stream.

    An engine that dies ends its streams as an exit does. If this promise was kept, it lived until the exit.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def kept(self) -> bool:
        """Waits for the exit."""
        try:
            return "StatusCode" in await self._response.json()
        except (aiohttp.ClientError, OSError, ValueError):
            return False
        finally:
            self.close()

    def close(self) -> None:
        self._response.close()


def _split(name: str) -> tuple[str, str]:
    """Repository and tag."""
    repository, _, tag = name.rpartition(":")
    return (repository, tag) if repository and "/" not in tag else (name, "latest")


def payload(pending: bytearray) -> bytes:
    """Takes the whole frames off `pending` and joins what they carry: 1 byte stream, 3 zero, 4 length."""
    parts = []
    at = 0
    while len(pending) - at >= 8:
        end = at + 8 + int.from_bytes(pending[at + 4 : at + 8], "big")
        if end > len(pending):
            break
        parts.append(bytes(pending[at + 8 : end]))
        at = end
    del pending[:at]
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files with which engine and client know each other. `named` tells what to look at if they are wrong."""

    ca: Path
    cert: Path
    key: Path
    named: str

    def context(self) -> ssl.SSLContext:
        """Raises VmmsUnavailable."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.load_cert_chain(str(self.cert), str(self.key))
        except OSError as e:
            files = ", ".join(map(str, (self.ca, self.cert, self.key)))
            raise VmmsUnavailable(f"{self.named}: of {files} one is missing or not valid: {e}") from e
        return context


def _connector(host: str, tls: Tls | None, sockets: _Sockets) -> tuple[str, aiohttp.BaseConnector]:
    """The address as aiodocker wants it, and a connector without a limit: a hundred jobs wait at a time.

    A fresh connection each: a kept one dies with the engine and fails the first call after its restart.
    """
    scheme, _, address = host.partition("://")
    if scheme == "unix":
        return "unix://localhost", aiohttp.UnixConnector(address, limit=0, force_close=True)
    if tls is None and (scheme == "https" or os.environ.get("DOCKER_TLS_VERIFY")):
        tls = _usual_tls()
    context: ssl.SSLContext | bool = True if tls is None else tls.context()
    connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=context, socket_factory=sockets.make)
    return f"{'http' if tls is None else 'https'}://{address}", connector


def _usual_tls() -> Tls:
    """Docker's own convention: ca.pem, cert.pem and key.pem in one directory."""
    directory = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    return Tls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem", "DOCKER_CERT_PATH")


class _Sockets:
    """Sockets that break when the network has been cut for SILENCE_S: a wait for output would else never end."""

    def __init__(self) -> None:
        self._open: WeakSet[socket.socket] = WeakSet()

    def make(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        self._open.add(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, SILENCE_S // 3),
            (socket.TCP_KEEPINTVL, SILENCE_S // 3),
            (socket.TCP_KEEPCNT, 2),
            (socket.TCP_USER_TIMEOUT, SILENCE_S * 1000),
        ):
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        return made

    async def closed(self) -> None:
        """TLS takes leave in the background. Waits for it, but not for one that hears nothing any more."""
        end = asyncio.get_running_loop().time() + LEAVE_S
        while any(one.fileno() >= 0 for one in self._open) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)


def _advice(host: str, error: aiodocker.DockerError) -> str:
    cause = error.__context__
    number = cause.errno if isinstance(cause, OSError) else None
    if number == errno.ENOENT:
        return (
            f"no Docker engine at {host}: install docker.io and start it (systemctl start docker), or set docker.host"
        )
    if number in (errno.EACCES, errno.EPERM):
        user = getpass.getuser()
        return f"{host} may not be used by {user}: usermod -aG docker {user}, then start again"
    if number == errno.ECONNREFUSED:
        return f"no Docker engine answers at {host}: start it (systemctl start docker)"
    return f"the Docker engine at {host} cannot be used: {error.message}"
