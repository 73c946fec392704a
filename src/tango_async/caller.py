"""A call to a server with Tango's REST API: repeated when a connection breaks, and answered or refused.

Every failure is a ClientError with the server's own words, or with the address that cannot be reached; the key is in
none of them.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from .errors import ClientError

RETRIES = 3
RETRY_S = 2.0
"""As Autolab's own client does it."""
ANSWER_S = 60.0
"""Longest wait for an answer; a server may take 20 s over an image."""
CONNECT_S = 10.0
_RETRIED = {errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}


class Answer(NamedTuple):
    status: int
    reason: str
    body: bytes
    fields: dict[str, Any] | None
    """The JSON object, if it is one."""


class Caller:
    """One server and one key. An async context manager."""

    def __init__(self, base_url: str, key: str, *, retry_s: float = RETRY_S) -> None:
        """Raises ClientError if `base_url` is not an http or https URL."""
        self.base_url = base_url.rstrip("/")
        if not re.match(r"https?://[^/]", base_url):
            raise ClientError(f"{base_url} is not the address of a server, such as http://127.0.0.1:3000")
        self.key = key
        self._retry_s = retry_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def path(self, verb: str, *parts: str) -> str:
        """With the key in it, as all of Tango's."""
        return "/" + "/".join(quote(part, safe="") for part in (verb, self.key, *parts)) + "/"

    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
        *,
        retries: int = RETRIES,
    ) -> dict[str, Any]:
        """The answer of a call that answers JSON. Raises ClientError for any refusal."""
        answer = await self.request(method, path, headers, body, retries=retries)
        if message := self.refusal(answer):
            raise ClientError(message)
        if answer.fields is None:
            raise self.unlike(f"{answer.body[:80]!r}")
        return answer.fields

    def refusal(self, answer: Answer) -> str | None:
        """Why the server refused; None if it did not."""
        if answer.fields is not None:
            status = answer.fields.get("statusId", 0)
            if isinstance(status, int) and status < 0:
                return _words(answer.fields.get("statusMsg"))
        if answer.status != 200:
            return f"{self.base_url} answered {answer.status} {answer.reason}"
        return None

    def unlike(self, what: str) -> ClientError:
        return ClientError(f"{self.base_url} does not answer as Tango does: {what}")

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] | None = None,
        *,
        retries: int = RETRIES,
    ) -> Answer:
        """The answer, whatever it says. `body` makes what is sent, anew for each try."""
        if self._session is None:
            raise RuntimeError("use it with `async with`")
        while True:
            try:
                url = URL(self.base_url + path, encoded=True)
                data = body() if body else None
                async with self._session.request(
                    method, url, headers=headers, data=data, allow_redirects=False
                ) as response:
                    if 300 <= response.status < 400:
                        raise self.unlike(f"it redirects to {response.headers.get('Location', 'nowhere')}")
                    return self._answer(response, await response.read())
            except ValueError as e:  # InvalidURL among them; its text would show the key
                raise ClientError(f"{self.base_url} or a name cannot be sent") from e
            except (aiohttp.ClientError, TimeoutError, OSError) as e:
                if isinstance(e.__cause__, ClientError):  # raised by a body while it was sent
                    raise e.__cause__ from e
                if not retries or not _is_passing(e):
                    raise ClientError(f"cannot reach {self.base_url}: {_reason(e)}") from e
            retries -= 1
            await asyncio.sleep(self._retry_s)

    def _answer(self, response: aiohttp.ClientResponse, body: bytes) -> Answer:
        fields = None
        if response.content_type == "application/json":
            try:
                fields = json.loads(body)
            except ValueError:
                raise self.unlike("its JSON is broken") from None
            if not isinstance(fields, dict):
                raise self.unlike("its JSON is no object")
        return Answer(response.status, response.reason or "", body, fields)


def _words(message: Any) -> str:
    """A statusMsg as text; a failed validation answers a list of `<date>|<text>` lines."""
    if isinstance(message, list):
        return "\n".join(str(line).rpartition("|")[2] for line in message)
    return str(message or "refused without a reason")


def _is_passing(e: BaseException) -> bool:
    if isinstance(e, aiohttp.ClientConnectorError):
        return False
    if isinstance(e, (TimeoutError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
        return True
    return isinstance(e, OSError) and e.errno in _RETRIED


def _reason(e: BaseException) -> str:
    if isinstance(e, aiohttp.ClientConnectorError):
        number = e.os_error.errno or 0  # below 0 if the host's name is unknown
        return os.strerror(number) if number > 0 else e.os_error.strerror or str(e.os_error)
    if isinstance(e, TimeoutError):
        return "no answer in time"
    if isinstance(e, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    if isinstance(e, OSError) and e.errno:
        return os.strerror(e.errno)  # aiohttp's own text may hold the URL, and so the key
    return str(e) or type(e).__name__
