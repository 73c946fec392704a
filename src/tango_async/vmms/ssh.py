"""One SSH connection to a VM: made again when it breaks, never to a host whose key is not known.

Owns asyncssh and its exceptions. What runs on the VM is remote.py's, what it means vm.py's.
A broken connection says nothing of the VM: `patiently` goes on trying until the VMMS says that the
VM is gone, or its patience is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import asyncssh

from ..errors import MachineLost, VmmsError

log = logging.getLogger(__name__)
logging.getLogger("asyncssh").setLevel(logging.WARNING)

T = TypeVar("T")

CONNECT_S = 10.0
"""Longest wait for a connection, its login included."""
OPEN_S = 20.0
"""Longest wait until the VM has begun a command."""
KEEPALIVE_S, KEEPALIVES = 5.0, 3
"""A connection on which nothing came for their product is broken."""
PAUSE_S = (0.1, 5.0)
"""Shortest and longest pause between two tries."""
CHUNK_BYTES = 256 * 1024


class LinkDown(VmmsError):
    """The VM could not be reached now, or the connection broke. Says nothing of what runs there."""


class Distrusted(VmmsError):
    """The host's key is not the one that was given, or the host refuses ours: trying again is of no use."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a VM is, and how the two sides know each other."""

    host: str
    user: str
    host_keys: tuple[str, ...]
    """Public keys in OpenSSH's form, such as `ssh-ed25519 AAAA…`; the host must have one of them."""
    private_key: str = field(repr=False)
    """Ours, in OpenSSH's or PEM form."""
    port: int = 22


def new_key() -> tuple[str, str]:
    """A new key pair: private and public, in OpenSSH's form."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode(), key.export_public_key().decode().strip()


def public_key(private_key: str) -> str:
    """The public half, in OpenSSH's form. Raises ValueError."""
    try:
        return asyncssh.import_private_key(private_key).export_public_key().decode().strip()
    except asyncssh.KeyImportError as e:
        raise ValueError(str(e)) from e


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command on the VM ended. `status` is negative for a signal."""

    status: int
    out: bytes
    err: bytes


class Process:
    """A command that runs on the VM. All its methods raise LinkDown if the connection breaks."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process

    async def write(self, data: bytes) -> None:
        """Raises BrokenPipeError if the command reads no more."""
        stdin = self._process.stdin
        with _translated():
            try:
                stdin.write(data)
                await stdin.drain()
                ended = stdin.is_closing()
            except (BrokenPipeError, ConnectionResetError):
                ended = True
        if ended:
            raise BrokenPipeError

    def end_input(self) -> None:
        if not self._process.stdin.is_closing():
            self._process.stdin.write_eof()

    async def read(self) -> bytes:
        """The next bytes of its output; b"" at the end."""
        with _translated():
            return await self._process.stdout.read(CHUNK_BYTES)

    async def ended(self) -> Ended:
        with _translated():
            done = await self._process.wait()
        if done.returncode is None:
            raise LinkDown("the connection broke")
        return Ended(done.returncode, _bytes(done.stdout), _bytes(done.stderr))


class Link:
    """The connection to one VM, shared by all that is done there. Opened when it is first used."""

    def __init__(self, reach: Reach, *, patience_s: float, why_gone: Callable[[], Awaitable[str]]) -> None:
        """`why_gone` asks the VMMS: "" while the VM is there, or it cannot be known. May raise a MachineLost itself."""
        self.reach = reach
        self._patience_s = patience_s
        self.why_gone = why_gone
        self.connected_s = 0.0
        """When the present or the last connection was made, by the loop's clock."""
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._closed = 0
        """How often."""

    async def close(self) -> None:
        """Whoever uses it later opens it again; a connection that is just being made is not kept."""
        self._closed += 1
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    @asynccontextmanager
    async def process(self, command: Sequence[str]) -> AsyncIterator[Process]:
        """Starts the command; its channel is closed in the end, however that comes. Raises LinkDown, Distrusted."""
        connection = await self._connected()
        with _translated():
            try:
                async with asyncio.timeout(OPEN_S):
                    process = await connection.create_process(shlex.join(command), encoding=None)
            except TimeoutError as e:
                connection.abort()
                raise LinkDown("the VM began no command in time") from e
        try:
            yield Process(process)
        finally:
            process.close()

    async def run(self, command: Sequence[str], *, within_s: float = OPEN_S) -> Ended:
        """A short command without input, to its end. Raises LinkDown, Distrusted."""
        try:
            async with asyncio.timeout(within_s), self.process(command) as process:
                process.end_input()
                return await process.ended()
        except TimeoutError as e:
            await self.close()
            raise LinkDown("the VM did not end a short command in time") from e

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does the work, again whenever the connection breaks. Raises MachineLost, Distrusted."""
        patience = self.patience()
        while True:
            try:
                return await work()
            except LinkDown as e:
                await patience.after(e)

    def patience(self) -> Patience:
        """For work that goes on where it was interrupted."""
        return Patience(self, self._patience_s)

    async def _connected(self) -> asyncssh.SSHClientConnection:
        async with self._connecting:
            if self._connection is None or self._connection.is_closed():
                self._connection, closed = None, self._closed
                connection = await _connect(self.reach)
                if self._closed > closed:
                    connection.abort()
                    raise LinkDown("the connection was closed before it was made")
                self._connection = connection
                self.connected_s = asyncio.get_running_loop().time()
            return self._connection


class Patience:
    """How often, and for how long, one wait outlasts a connection that breaks."""

    def __init__(self, link: Link, limit_s: float) -> None:
        self._link = link
        self._limit_s = limit_s
        self._since_s: float | None = None
        self._pause_s = PAUSE_S[0]

    async def after(self, error: LinkDown) -> None:
        """Returns when it is time for another try. Raises MachineLost if the VM is gone, or the limit has passed."""
        now, link = asyncio.get_running_loop().time(), self._link
        if self._since_s is None or link.connected_s > self._since_s:
            self._since_s, self._pause_s = now, PAUSE_S[0]
        if why := await link.why_gone():
            raise MachineLost(why) from error
        if now - self._since_s > self._limit_s:
            raise MachineLost(f"{link.reach.host}: out of reach for {self._limit_s:.0f} s: {error}") from error
        log.info("%s: %s; trying again", link.reach.host, error)
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads tries, hides nothing
        self._pause_s = min(self._pause_s * 2, PAUSE_S[1])


async def _connect(reach: Reach) -> asyncssh.SSHClientConnection:
    with _translated(reach):
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncssh.connect(
                    reach.host,
                    reach.port,
                    username=reach.user,
                    client_keys=[asyncssh.import_private_key(reach.private_key)],
                    known_hosts=([asyncssh.import_public_key(key) for key in reach.host_keys], [], []),
                    # Nothing of this account's own ssh set-up: no agent, no configuration, no environment.
                    agent_path=None,
                    config=None,
                    send_env=(),
                    x509_trusted_certs=None,
                    x509_trusted_cert_paths=(),
                    preferred_auth="publickey",
                    gss_host=None,
                    keepalive_interval=KEEPALIVE_S,
                    keepalive_count_max=KEEPALIVES,
                )
        except TimeoutError as e:
            raise LinkDown(f"no answer within {CONNECT_S:.0f} s") from e


class _translated:
    """asyncssh's exceptions and the sockets' become ours."""

    def __init__(self, reach: Reach | None = None) -> None:
        self._reach = reach

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        where = f"{self._reach.user}@{self._reach.host}: " if self._reach else ""
        match error:
            case asyncssh.HostKeyNotVerifiable():
                raise Distrusted(f"{where}the host's key is not the one it was given: another host answers") from error
            case asyncssh.PermissionDenied():
                raise LinkDown(f"{where}the host refuses our key for this user") from error
            case asyncssh.Error() | OSError() if not isinstance(error, TimeoutError):
                raise LinkDown(f"{where}{error or type(error).__name__}") from error


def _bytes(said: bytes | str | None) -> bytes:
    return said if isinstance(said, bytes) else b""
