"""How an engine is reached: its address, the files of TLS, sockets that notice a cut, and what to do if it is not."""

from __future__ import annotations

import asyncio
import errno
import getpass
import os
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import aiodocker
import aiohttp

from ..errors import VmmsUnavailable

SILENCE_S = 15
"""A connection whose other end the network has not heard for so long is broken."""

LEAVE_S = 1.0
"""Longest wait for TLS connections to take leave."""


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


def connector_of(host: str, tls: Tls | None, sockets: Sockets) -> tuple[str, aiohttp.BaseConnector]:
    """The address as aiodocker wants it, and a connector without a limit: a hundred jobs wait at a time.

    A fresh connection each: a kept one dies with the engine and fails the first call after its restart.
    """
    scheme, _, address = host.partition("://")
    if scheme == "unix":
        return "unix://localhost", aiohttp.UnixConnector(address, limit=0, force_close=True)
    context: ssl.SSLContext | bool = True if tls is None else tls.context()
    connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=context, socket_factory=sockets.make)
    return f"{'http' if tls is None else 'https'}://{address}", connector


def usual_tls(host: str) -> Tls | None:
    """Where Docker's own convention asks for TLS: ca.pem, cert.pem and key.pem in one directory."""
    scheme = host.partition("://")[0]
    if scheme == "unix" or not (scheme == "https" or os.environ.get("DOCKER_TLS_VERIFY")):
        return None
    directory = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    return Tls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem", "DOCKER_CERT_PATH")


class Sockets:
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


def advice(host: str, error: aiodocker.DockerError) -> str:
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


def advice_of_tls(host: str, tls: Tls | None, error: BaseException) -> str:
    """What to look at, if TLS is why, or may be why; else empty."""
    engine, causes = f"the Docker engine at {host}", list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            file = tls.ca if tls is not None else "the usual authorities"
            return f"{engine} has a certificate that ca ({file}) does not know: {cause}"
        if isinstance(cause, ssl.SSLError) and tls is not None and _REFUSAL.search(str(cause)):
            return f"{engine} does not take our certificate, cert ({tls.cert}): {cause}"
    # A server that refuses closes as well, and what is still under way to it then resets the connection: its refusal
    # may be lost.
    broken = [cause for cause in causes if isinstance(cause, _BROKEN)]
    if broken and tls is not None:
        return f"{engine} broke off; perhaps it does not take our certificate, cert ({tls.cert}): {broken[-1]!r}"
    spoken = [cause for cause in causes if isinstance(cause, ssl.SSLError)]
    return f"{engine} and we find no common TLS: {spoken[0]}" if spoken else ""


_REFUSAL = re.compile("ALERT.*(CERT|UNKNOWN_CA|ACCESS_DENIED)")
_BROKEN = (
    *(ConnectionResetError, ConnectionAbortedError, BrokenPipeError),
    *(aiohttp.ServerDisconnectedError, ssl.SSLEOFError, ssl.SSLZeroReturnError),
)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
