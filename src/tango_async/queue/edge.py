"""redis-py's exceptions and timeouts as ours: what passes, what the settings are to blame for, what is broken."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

from redis import exceptions

from ..errors import QueueBroken, QueueOutOfMemory, QueueRefused, QueueUnavailable, StoreError

PASSING = ("LOADING", "BUSY", "READONLY", "MISCONF", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED")
"""Refusals that end by themselves or by an operator's hand, and are worth another try. The first word of an error that
redis-py knows is not in its text any more."""


class Edge:
    """Bounds what is done inside, and turns redis-py's exceptions into ours.

    redis-py waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes
    as its wait ends. It is known to the task and raised here, or a loop that asks Redis could not be
    ended.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout = asyncio.timeout(timeout_s)
        self._cancels = 0

    async def __aenter__(self) -> None:
        self._cancels = cancels()
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as e:
            raise ours(e) from error
        if cancels() > self._cancels and not isinstance(error, asyncio.CancelledError):
            raise asyncio.CancelledError from error
        if isinstance(error, Exception) and (known := ours(error)) is not error:
            raise known from error


def ours(error: Exception) -> Exception:
    """What an error at the edge is to the service. NoScriptError and what is no error of the edge stay as they are."""
    match error:
        case exceptions.NoScriptError():
            return error
        case TimeoutError():
            found: Exception = QueueUnavailable("Redis does not answer")
        case exceptions.OutOfMemoryError():
            found = QueueOutOfMemory("Redis is out of memory")
        case exceptions.RedisError() if refused := _refusal(error):
            found = QueueRefused(refused)
        case exceptions.ResponseError() if not (error.status_code or str(error)).startswith(PASSING):
            found = QueueBroken(f"Redis refuses what it is asked: {error}")
        case exceptions.RedisError() | OSError():
            found = QueueUnavailable(f"Redis cannot be used: {error}")
        case StoreError():
            found = QueueUnavailable(f"the mark of job ids cannot be read: {error}")
        case _:
            return error
    found.__cause__ = error
    return found


def _refusal(error: Exception) -> str:
    """If the settings do not let us in, or not far enough: which, and why."""
    said = str(error)
    # redis-py tells it in three ways, by the kind of connection and of Redis.
    if any(isinstance(e, exceptions.AuthenticationError) for e in _causes(error)) or said.startswith(_NOT_IN):
        return f"Redis refuses queue.username and queue.password, or those in queue.url (TANGO_REDIS_URL): {said}"
    if isinstance(error, exceptions.NoPermissionError) or "NOPERM" in said or _DENIED in said:
        return f"Redis denies the user of queue.username what is needed; docs/operating.md has its rules: {said}"
    tls = next((e for e in _causes(error) if isinstance(e, ssl.SSLError)), None)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return f"queue.ca (TANGO_QUEUE_CA): the certificate of Redis is not to be trusted: {tls.verify_message}"
    if tls is not None:
        return f"queue.url, queue.cert: TLS fails, by the wrong port or for want of a certificate of ours: {tls.reason}"
    return ""


_NOT_IN = ("NOAUTH", "WRONGPASS", "invalid username-password pair")
_DENIED = "The user executing the script can't"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def cancels() -> int:
    """How often the task was asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0
