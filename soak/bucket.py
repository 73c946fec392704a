"""A bucket of a real S3 server: hosts that share no disk, and the server and their ways to it in torment."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from plan import Part, Wish, Wishes
from program import Program
from proxy import Proxy

from support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, make_bucket, raw_client

PREFIX = "soak"
TIMEOUT_S = 3.0
UNFINISHED_S = 5.0
"""Longer than an upload of the soak takes, but for one that is held up."""

STAY = ("labs", "files", "used", "marks")
"""Of the folders of a bucket, those that are no job's."""

UPLOAD = re.compile(r"files/(.+)/[0-9]{12}-[0-9a-f]{32}")


class Bucket:
    """A Store. Each server and dispatcher is a host of its own."""

    stray_age_s: ClassVar = 25.0
    settle_s: ClassVar = stray_age_s + UNFINISHED_S + 25.0

    def __init__(self, kind: str, directory: Path, hosts: Sequence[str]) -> None:
        self._directory = directory
        (directory / "s3").mkdir()
        self._server = S3Server(kind, directory / "s3")
        self._proxies = {name: Proxy(self._dial, "ways to the bucket") for name in hosts}
        self._program = Program(
            "bucket",
            self._server.command(),
            self._server.environment(),
            directory / "logs",
            self._answers,
            directory / "s3",
        )
        self.programs = [self._program]
        self.parts: Mapping[str, Part] = {f"{name}-bucket": proxy for name, proxy in self._proxies.items()}
        others = [
            Wish(4, "pause", "bucket", 5),
            *(Wish(1, "cut", f"{name}-bucket", 0) for name in hosts),
            *(Wish(2, "hold", f"{name}-bucket", 8) for name in hosts),
        ]
        # moto keeps everything in its memory, and so it is not killed.
        self.wishes = Wishes([Wish(4, "kill", "bucket", 3)] if kind != "moto" else [], others)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._server.port)

    async def _answers(self, _: str) -> bool:
        return await asyncio.to_thread(self._server.answers)

    async def open(self) -> None:
        for proxy in self._proxies.values():
            await proxy.open()
        self._program.keep()
        await self._program.until_ready()
        await make_bucket(self._server)

    def host(self, program: str) -> str:
        return program

    def environment(self, program: str) -> dict[str, str]:
        return {
            "TANGO_DATA_DIR": str(self._directory / "data" / program),
            "TANGO_STORE_URL": f"s3://{BUCKET}/{PREFIX}",
            "TANGO_S3_ENDPOINT": f"http://127.0.0.1:{self._proxies[program].port}",
            "TANGO_S3_TIMEOUT_S": str(TIMEOUT_S),
            "TANGO_S3_PART_BYTES": str(5 * 1024**2),
            "TANGO_S3_UNFINISHED_S": str(UNFINISHED_S),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            # What an upload that was cut off has left of the one before goes with those of no more use.
            "TANGO_RETENTION_UPLOAD_DAYS": "30",
            "TANGO_RETENTION_PERIOD_S": "5",
        }

    async def strays(self, refs: set[str]) -> list[str]:
        async with raw_client(self._server) as client:
            keys = await _keys(client)
            parts = (await client.list_multipart_uploads(Bucket=BUCKET)).get("Uploads", [])
        outputs = {key.removeprefix("outputs/") for key in keys if key.startswith("outputs/")}
        found = [key for key in keys if key.partition("/")[0] not in (*STAY, "outputs")]
        found += [f"outputs/{ref}" for ref in outputs - refs] + [f"no object {ref}" for ref in refs - outputs]
        found += [f"unfinished: {part['Key']}" for part in parts]
        uploads = Counter(upload[1] for key in keys if (upload := UPLOAD.fullmatch(key)))
        found += [f"files/{name}: {number} objects" for name, number in uploads.items() if number > 1]
        # On the hosts' own disks nothing of a courselab may lie.
        return found + [str(path) for path in self._directory.glob("data/*/courselabs")]

    async def close(self) -> None:
        await self._program.stop(within_s=0.5)
        self._server.kill()  # with the sockets that it leaves
        for proxy in self._proxies.values():
            await proxy.close()


async def _keys(client: Any) -> list[str]:
    """All that there is in the bucket, as the map of the keys has it."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [one["Key"].removeprefix(f"{PREFIX}/") async for page in pages for one in page.get("Contents", [])]
