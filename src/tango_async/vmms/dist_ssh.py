"""An engine over SSH: one connection a host, which forwards a socket here to the engine's socket there.

Owns asyncssh and its exceptions. The socket lies in a directory that only this user may enter, since
whoever reaches it is root on the host.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncssh

from ..config import DockerHost
from ..errors import ConfigError, VmmsUnavailable

log = logging.getLogger(__name__)
logging.getLogger("asyncssh").setLevel(logging.WARNING)

SOCKET = "/var/run/docker.sock"
KEEPALIVE_S, KEEPALIVES = 5.0, 2
"""A connection on which nothing came for their product is broken."""

MOST_PATH_BYTES = 107
"""Of a unix socket's name."""


class Tunnel:
    """To the engine of one of `docker.hosts`. Made anew when it breaks, never to a host whose key is not known."""

    def __init__(self, one: DockerHost, directory: Path) -> None:
        self._one = one
        self._named = f"docker.hosts: {one.name}"
        try:
            url = urlsplit(one.url)
            self._host, self._port, self._user = url.hostname or "", url.port or 22, url.username
        except ValueError as e:
            raise ConfigError(f"{self._named}: url: {e}") from e
        if not self._host:
            raise ConfigError(f"{self._named}: url: {one.url} names no host")
        self._there = url.path if url.path not in ("", "/") else SOCKET
        self.socket = directory / one.name
        if len(str(self.socket).encode()) > MOST_PATH_BYTES:
            raise ConfigError(f"dispatcher.state_dir: too long a name for the socket {self.socket}")
        self._connection: asyncssh.SSHClientConnection | None = None

    async def keep(self) -> None:
        if self._connection is None or self._connection.is_closed():
            await self.close()
            try:
                self._connection = await self._connect()
                await _without_delay(self._connection)
                self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                await self._connection.forward_local_path(str(self.socket), self._there)
            except (asyncssh.Error, OSError) as e:
                await self.close()
                raise VmmsUnavailable(self._said(e)) from e
            except asyncio.CancelledError:
                await self.close()  # or it would pass for one that forwards
                raise

    async def _connect(self) -> asyncssh.SSHClientConnection:
        one = self._one
        return await asyncssh.connect(
            self._host,
            self._port,
            **({"username": self._user} if self._user else {}),
            **({"client_keys": [str(one.key)], "agent_path": None} if one.key is not None else {}),
            **({"known_hosts": str(one.known_hosts)} if one.known_hosts is not None else {}),
            # Nothing of this account's own set-up, and none of its environment for the host.
            config=None,
            send_env=(),
            preferred_auth="publickey",
            gss_host=None,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES,
        )

    def _said(self, error: Exception) -> str:
        """What an operator can do about it."""
        match error:
            case asyncssh.HostKeyNotVerifiable():
                file = self._one.known_hosts or "~/.ssh/known_hosts"
                return (
                    f"{self._named}: the key of {self._host} is not the one in known_hosts ({file}): "
                    "it is not there, or has changed, or another host answers"
                )
            case asyncssh.PermissionDenied():
                return (
                    f"{self._named}: {self._host} refuses the key ({self._one.key or '~/.ssh'}) of {self._user or 'us'}"
                )
            case asyncssh.KeyImportError() | FileNotFoundError() | PermissionError():
                return f"{self._named}: key or known_hosts: {error}"
        return f"{self._named}: {self._host}:{self._port} cannot be reached by ssh: {error or type(error).__name__}"

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
            with suppress(OSError, asyncssh.Error):
                await connection.wait_closed()
        with suppress(OSError):
            self.socket.unlink(missing_ok=True)


async def _without_delay(connection: asyncssh.SSHClientConnection) -> None:
    """Begins a command, whatever becomes of it: from then on OpenSSH's server sends small packets at once.

    A connection that only forwards has no TCP_NODELAY there, which costs each job 40 ms: the end of an answer waits for
    the acknowledgement of its beginning, and our kernel delays that. A host that allows no command is used as it is.
    """
    with suppress(asyncssh.Error):
        (await connection.create_process("true")).close()
