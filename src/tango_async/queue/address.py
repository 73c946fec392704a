"""Where Redis is and how to get in, as the settings say; and its place of the moment, as Sentinels tell it.

Every connection of the service is made with these options: nothing is left to redis-py's defaults, which time out
and repeat blocking reads.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import exceptions
from redis.asyncio.connection import Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff

from ..config import Queue
from ..errors import ConfigError

SENTINEL_PORT = 26379

SENTINEL_S = 0.5
"""A Sentinel that has not answered within this time is passed over."""

URL = "queue.url (TANGO_REDIS_URL)"


def options(settings: Queue) -> dict[str, Any]:
    """Of a connection pool. Raises ConfigError."""
    chosen: dict[str, Any] = {
        "protocol": 3,
        "socket_timeout": 5.0,
        "socket_connect_timeout": 5.0,
        "health_check_interval": 0,
        "decode_responses": False,
        "retry": Retry(ExponentialBackoff(cap=0.25, base=0.02), 3),
        "max_connections": 64,
    }
    scheme = settings.url.partition(":")[0]
    try:
        where = _by_sentinel(settings) if scheme.endswith("+sentinel") else dict(parse_url(settings.url))
    except ValueError as e:
        raise ConfigError(f"{URL}: {e}") from e
    if scheme != "unix":
        chosen["socket_keepalive"] = True
    who = {"username": settings.username, "password": settings.password}
    return chosen | _tls(settings, scheme) | where | {name: value for name, value in who.items() if value}


def _tls(settings: Queue, scheme: str) -> dict[str, Any]:
    files = {"ssl_ca_certs": settings.ca, "ssl_certfile": settings.cert, "ssl_keyfile": settings.cert_key}
    given = {name: str(path) for name, path in files.items() if path is not None}
    if not scheme.startswith("rediss"):
        if given:
            raise ConfigError(f"queue.ca, queue.cert: {URL} is not rediss://, so that TLS would not be used")
        return {}
    context = ssl.create_default_context()
    for name, load in (("ca", context.load_verify_locations), ("cert", _load_chain(context, settings.cert_key))):
        path: Path | None = getattr(settings, name)
        try:
            if path is not None:
                load(str(path))
        except OSError as e:
            raise ConfigError(f"queue.{name} (TANGO_QUEUE_{name.upper()}): {path}: {e.strerror or e}") from e
    return {**given, "ssl_check_hostname": True}


def _load_chain(context: ssl.SSLContext, key: Path | None) -> Any:
    return lambda cert: context.load_cert_chain(cert, key)


# -- Sentinel ------------------------------------------------------------------------------------


class Sentinels:
    """Asked by every new connection to a master of that name. Any of them will do; the last that answered is first."""

    def __init__(self, name: str, places: list[tuple[str, int]], kind: type[Connection], how: dict[str, Any]) -> None:
        self._name = name
        self._places = places
        self._kind = kind
        self._how = how

    async def master(self) -> tuple[str, int]:
        """Its host and port. Raises redis-py's ConnectionError, or AuthenticationError."""
        said = []
        for place in list(self._places):
            try:
                async with asyncio.timeout(SENTINEL_S):
                    found = await self._ask(*place)
            except exceptions.AuthenticationError as e:
                raise exceptions.AuthenticationError(f"{e} (Sentinel: queue.sentinel_username and _password)") from e
            except (exceptions.RedisError, OSError, TimeoutError) as e:
                said.append(f"{place[0]}:{place[1]}: {e or 'no answer'}")
                continue
            if found:
                self._places.remove(place)
                self._places.insert(0, place)
                return found[0].decode(), int(found[1])
            said.append(f"{place[0]}:{place[1]} knows no such master")
        raise exceptions.ConnectionError(f"no Sentinel tells where {self._name} is: {'; '.join(said)}")

    async def _ask(self, host: str, port: int) -> Any:
        connection = self._kind(host=host, port=port, **self._how)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)


class NotMaster(exceptions.ConnectionError):
    """Said by a server that is a replica now, or has none: it refuses one command, and may answer others."""


class MasterConnection(Connection):
    """Goes to whichever server is the master when it connects, and leaves one that is no longer."""

    def __init__(self, *, sentinels: Sentinels, **how: Any) -> None:
        super().__init__(**how)
        self._sentinels = sentinels

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.master()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except exceptions.ResponseError as e:
            # The last is said by a master that has lost its replicas, perhaps to another one.
            if not isinstance(e, exceptions.ReadOnlyError) and not str(e).startswith(("UNBLOCKED", "NOREPLICAS")):
                raise
            await self.disconnect(nowait=True)
            raise NotMaster(f"this Redis is not the master any more: {e}") from e


class MasterTlsConnection(MasterConnection, SSLConnection):
    """The same over TLS."""


def _by_sentinel(settings: Queue) -> dict[str, Any]:
    """Raises ValueError."""
    parts = urlsplit(settings.url)
    tls = parts.scheme == "rediss+sentinel"
    if parts.scheme not in ("redis+sentinel", "rediss+sentinel"):
        raise ValueError("expected redis+sentinel:// or rediss+sentinel://")
    who, _, hosts = parts.netloc.rpartition("@")
    name, _, database = parts.path.strip("/").partition("/")
    if not hosts or not name or not (database or "0").isdigit():
        raise ValueError("expected redis+sentinel://HOST:PORT,HOST,…/MASTER/DATABASE")
    user, _, password = who.partition(":")
    how = _tls(settings, parts.scheme) | {
        "username": settings.sentinel_username or None,
        "password": settings.sentinel_password or None,
        "protocol": 3,
        # Each question is bounded as a whole. redis-py would bound a write by `wait_for`, which before Python 3.12 may
        # forget that its task was cancelled.
        "socket_timeout": None,
        "socket_connect_timeout": SENTINEL_S,
        "retry": Retry(NoBackoff(), 0),
    }
    places = [_place(host) for host in hosts.split(",") if host]
    return {
        "connection_class": MasterTlsConnection if tls else MasterConnection,
        "sentinels": Sentinels(name, places, SSLConnection if tls else Connection, how),
        "db": int(database or 0),
        "username": unquote(user) or None,
        "password": unquote(password) or None,
    }


def _place(raw: str) -> tuple[str, int]:
    parts = urlsplit(f"//{raw}")
    if not parts.hostname:
        raise ValueError("a Sentinel without a host")
    return parts.hostname, parts.port or SENTINEL_PORT
