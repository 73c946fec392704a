"""What comes from an engine and goes to it while a container runs, as it happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Self

import aiodocker
import aiohttp
from aiodocker.stream import Stream
from yarl import URL

from ..errors import MachineLost


class Attached:
    """A container's standard input or output, as it happens."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._first = b""

    @classmethod
    def to(cls, docker: aiodocker.Docker, name: str, *, stdin: bool, output: bool) -> Self:
        """One that is still to be opened. aiodocker's own asks the engine first whether there is a terminal."""
        url = URL(f"containers/{name}/attach").with_query(
            stream=1, stdin=int(stdin), stdout=int(output), stderr=int(output)
        )

        async def setup() -> tuple[URL, bytes | None, bool]:
            return url, None, False

        return cls(Stream(docker, setup))

    async def open(self) -> None:
        await self._stream.__aenter__()

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
