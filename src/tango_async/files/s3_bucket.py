"""A bucket of any S3 server: the only module that calls aiobotocore, and no more of S3 than all servers have.

No condition on a write, no deletion of many at once, no checksum that a server might not know: servers
differ in these. Every call is tried four times with growing pauses and raises errors of ours.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from ..config import Encryption, Settings
from ..errors import ConfigError, StoreError, StoreUnavailable
from .s3_errors import Gone, Translator

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

T = TypeVar("T")
R = TypeVar("R")

BLOCK = 1 << 18
"""Bytes of a body that are handed on at a time."""

COPY_PART = 64 << 20
"""Larger objects are copied in parts of this size, several at a time: a copy of all takes long, and not over 5 GiB."""

MOST_PARTS = 10_000
CONNECTIONS = 256
AT_A_TIME = 16
"""Requests that one call of ours makes at a time."""

CONNECT_S = 5.0
TRIES = 4
RESUMED = 4
"""How often in a row a body that broke off is asked for again, from where it broke off."""


class Entry(NamedTuple):
    """An object as the server knows it; `written_s` by the server's clock, often in whole seconds."""

    key: str
    size: int
    written_s: float


class Bucket:
    """Keys are given and returned without the store's prefix."""

    def __init__(self, settings: Settings) -> None:
        self._name, self._prefix = settings.store.bucket
        self._settings = settings.s3
        self._errors = Translator(settings)
        self._stack = AsyncExitStack()
        self._client: S3Client
        self._ahead_s = 0.0
        self.part_bytes = settings.s3.part_bytes
        self.unfinished_s = settings.s3.unfinished_s

    async def open(self) -> None:
        """Asks the server for nothing yet. Raises ConfigError."""
        s = self._settings
        path_style = bool(s.endpoint) if s.path_style is None else s.path_style
        options = AioConfig(
            s3={"addressing_style": "path" if path_style else "virtual"},
            connect_timeout=CONNECT_S,
            read_timeout=s.timeout_s,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": TRIES},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        session = get_session()
        try:
            client = session.create_client(
                "s3",
                region_name=s.region or session.get_config_variable("region") or "us-east-1",
                endpoint_url=s.endpoint or None,
                aws_access_key_id=s.access_key or None,
                aws_secret_access_key=s.secret_key or None,
                aws_session_token=s.session_token or None,
                config=options,
            )
            self._client = await self._stack.enter_async_context(client)
        except ValueError as e:
            raise ConfigError(f"[s3]: {e}") from e

    async def close(self) -> None:
        await self._stack.aclose()

    # -- one object --------------------------------------------------------------------------------

    async def put(self, key: str, body: bytes = b"") -> None:
        await self._ask(self._client.put_object(**self._at(key), Body=body, **self._encrypted()))

    async def find(self, key: str) -> Entry | None:
        """None if there is no such object."""
        try:
            head = await self._ask(self._client.head_object(**self._at(key)))
        except Gone:
            return None
        return Entry(key, head["ContentLength"], head["LastModified"].timestamp())

    async def begin(self, key: str, most: int) -> tuple[bytes, int]:
        """The first bytes of an object, at most so many, and how many it has in all. Raises Gone."""
        try:
            with self._errors():
                got = await self._client.get_object(**self._at(key), Range=f"bytes=0-{most - 1}")
                async with got["Body"] as body:
                    return await body.read(), int(got["ContentRange"].rpartition("/")[2])
        except StoreError as e:
            if _code(e) == "InvalidRange":
                return b"", 0  # of an empty object there is no first byte
            raise

    async def blocks(self, key: str, size: int, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to `size`; goes on where a connection broke. Raises Gone."""
        tries = 0
        while start < size:
            try:
                async with aclosing(self._get(key, start, size)) as blocks:
                    async for block in blocks:
                        start, tries = start + len(block), 0
                        yield block
            except StoreUnavailable:
                if (tries := tries + 1) > RESUMED:
                    raise
                await asyncio.sleep(0.1 * 2**tries)

    async def _get(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        got = await self._ask(self._client.get_object(**self._at(key), Range=f"bytes={start}-{end - 1}"))
        async with got["Body"] as body:
            while start < end:
                with self._errors():
                    block = await body.read(BLOCK)
                if not block:
                    raise StoreUnavailable("s3.endpoint: an object ended before its end")
                start += len(block)
                yield block

    async def copy(self, source: str, to: str, size: int) -> None:
        """On the server. Raises Gone if there is no source."""
        whole: Any = {"CopySource": {"Bucket": self._name, "Key": self._prefix + source}}
        if size <= COPY_PART:
            await self._ask(self._client.copy_object(**self._at(to), **whole, **self._encrypted()))
            return
        step = max(COPY_PART, -(-size // MOST_PARTS))
        async with self.in_parts(to) as parts:
            ranges = [f"bytes={start}-{min(start + step, size) - 1}" for start in range(0, size, step)]

            async def one(numbered: tuple[int, str]) -> None:
                number, where = numbered
                await parts.copy(number, {**whole, "CopySourceRange": where})

            await each(one, enumerate(ranges, 1))

    async def delete(self, keys: Iterable[str]) -> None:
        """Those that are gone already are no error."""

        async def one(key: str) -> None:
            with suppress(Gone):
                await self._ask(self._client.delete_object(**self._at(key)))

        await each(one, keys)

    # -- large objects, in parts -------------------------------------------------------------------

    @asynccontextmanager
    async def in_parts(self, key: str) -> AsyncIterator[Parts]:
        """An object that is there when the block has ended, and not at all if it raises."""
        begun = await self._ask(self._client.create_multipart_upload(**self._at(key), **self._encrypted()))
        parts = Parts(self, self._client, {**self._at(key), "UploadId": begun["UploadId"]})
        try:
            yield parts
            await parts.finish()
        except BaseException:
            # Shielded: also when the caller is cancelled. What this does not reach, the sweep finds.
            with suppress(StoreError):
                await asyncio.shield(self.abort(key, begun["UploadId"]))
            raise

    async def abort(self, key: str, upload_id: str) -> None:
        """One that is gone already is no error."""
        with suppress(Gone):
            await self._ask(self._client.abort_multipart_upload(**self._at(key), UploadId=upload_id))

    async def unfinished(self) -> list[tuple[str, str, float]]:
        """Objects that were begun in parts and never finished: key, id, when they were begun."""
        found = []
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._name, Prefix=self._prefix)
        async for page in self._pages(pages):
            for one in page.get("Uploads", []):
                found.append((self._plain(one["Key"]), one["UploadId"], one["Initiated"].timestamp()))
        return found

    # -- many --------------------------------------------------------------------------------------

    async def scan(self, begin: str) -> AsyncIterator[Entry]:
        """All objects whose keys begin so, in the order of their keys."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=self._prefix + begin)
        async for page in self._pages(pages):
            for one in page.get("Contents", []):
                yield Entry(self._plain(one["Key"]), one["Size"], one["LastModified"].timestamp())

    async def all(self, begin: str) -> list[Entry]:
        return [entry async for entry in self.scan(begin)]

    @property
    def away(self) -> int:
        """How often the server was found away so far."""
        return self._errors.away

    def now_s(self) -> float:
        """The server's clock, as its last listing told it."""
        return time.time() + self._ahead_s

    # -- within ------------------------------------------------------------------------------------

    async def _pages(self, pages: Any) -> AsyncIterator[Any]:
        turning = aiter(pages)
        while True:
            with self._errors():
                try:
                    page = await anext(turning)
                except StopAsyncIteration:
                    return
            said = page["ResponseMetadata"]["HTTPHeaders"].get("date")
            if said is not None:
                self._ahead_s = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
            yield page

    async def _ask(self, call: Awaitable[T]) -> T:
        with self._errors():
            return await call

    def _at(self, key: str) -> Any:
        return {"Bucket": self._name, "Key": self._prefix + key}

    def _plain(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _encrypted(self) -> Any:
        s = self._settings
        if s.encryption is Encryption.DEFAULT:
            return {}
        key = {"SSEKMSKeyId": s.kms_key} if s.encryption is Encryption.KMS and s.kms_key else {}
        return {"ServerSideEncryption": s.encryption.value, **key}


class Parts:
    """An object on its way in, part by part."""

    def __init__(self, bucket: Bucket, client: S3Client, at: Any) -> None:
        self._ask = bucket._ask
        self._client = client
        self._at = at
        self._tags: dict[int, str] = {}

    async def put(self, number: int, body: bytes) -> None:
        """Parts count from 1, and all but the last are of one size."""
        if number > MOST_PARTS:
            raise StoreError(f"s3.part_bytes: a body has more than {MOST_PARTS} parts of that size; raise it")
        done = await self._ask(self._client.upload_part(**self._at, PartNumber=number, Body=body))
        self._tags[number] = done["ETag"]

    async def copy(self, number: int, source: Any) -> None:
        done = await self._ask(self._client.upload_part_copy(**self._at, PartNumber=number, **source))
        self._tags[number] = done["CopyPartResult"]["ETag"]

    async def finish(self) -> None:
        parts: Any = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(self._tags.items())]
        await self._ask(self._client.complete_multipart_upload(**self._at, MultipartUpload={"Parts": parts}))


async def each(work: Callable[[T], Awaitable[R]], things: Iterable[T], at_a_time: int = AT_A_TIME) -> list[R]:
    """Does it for each, several at a time; the answers in their order. The first error ends it."""
    waiting = list(things)
    answers: dict[int, R] = {}
    numbers = iter(range(len(waiting)))

    async def worker() -> None:
        for n in numbers:
            answers[n] = await work(waiting[n])

    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_a_time, len(waiting))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        failed = errors.exceptions[0]
    if failed is not None:
        raise failed  # here, where it keeps its own cause
    return [answers[n] for n in range(len(waiting))]


def _code(error: StoreError) -> str:
    response = getattr(error.__cause__, "response", None) or {}  # that of a connection that broke is None
    return str(response.get("Error", {}).get("Code", ""))
