"""docs/backup.md for files in a bucket: copied to a disk while the service runs, restored below another prefix."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, make_bucket, raw_client
from support.service import Service

ROOT = Path(__file__).parents[2]
MAKEFILE = b"autograde:\n\t@sleep 0.3; cat answer\n"
HELD = b"autograde:\n\t@until [ -s /starts ]; do sleep 0.05; done; cat answer\n"


async def fetch(server: S3Server, prefix: str, to: Path) -> None:
    """What stands below the prefix, as files; those that went meanwhile are none."""
    async with raw_client(server) as client:
        async for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for key in (entry["Key"] for entry in page.get("Contents", [])):
                try:
                    answer = await client.get_object(Bucket=BUCKET, Key=key)
                except client.exceptions.NoSuchKey:
                    continue
                (to / quote(key.partition("/")[2], safe="")).write_bytes(await answer["Body"].read())


async def send(server: S3Server, origin: Path, prefix: str) -> None:
    async with raw_client(server) as client:
        for file in origin.iterdir():
            await client.put_object(Bucket=BUCKET, Key=f"{prefix}/{unquote(file.name)}", Body=file.read_bytes())


async def submit(service: Service, number: int, makefile: bytes = MAKEFILE) -> int:
    """A job whose input is its own, and is replaced by the next one's."""
    await service.upload("lab", {"Makefile": makefile, "answer": b"answer %d\n" % number})
    return await service.add("lab", ["Makefile", "answer"], f"{number}.txt")


@pytest.mark.parametrize("s3_server", ["seaweedfs"], indirect=True)
async def test_what_was_copied_while_it_ran_goes_on_below_another_prefix(
    service: Service, starts: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    await make_bucket(s3_server)
    del service.environment["TANGO_REDIS_URL"]
    service.environment |= {
        "TANGO_STORE_URL": f"s3://{BUCKET}/before",
        "TANGO_S3_ENDPOINT": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "TANGO_SLOTS": "1",
        "TANGO_DISPATCHER_GRACE_S": "0.1",
        "TANGO_DISPATCHER_LEASE_S": "1",
        "TANGO_DISPATCHER_ADOPT_GRACE_S": "1",
        "TANGO_DISPATCHER_UPKEEP_S": "0.3",
    }
    await service.run("tango", "up")
    data = Path(service.environment["TANGO_DATA_DIR"])
    first = await submit(service, 0)
    assert "answer 0" in await service.poll("lab", "0.txt")
    waiting = [await submit(service, n) for n in range(1, 6)]
    waiting.append(await submit(service, 6, HELD))

    copy = tmp_path / "copy"
    (copy / "bucket").mkdir(parents=True)
    await fetch(s3_server, "before/pins/", copy / "bucket")
    command = [ROOT / "deploy" / "backup.sh", "--queue", copy, data / "redis"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    await fetch(s3_server, "before/", copy / "bucket")
    await service.end()

    await send(s3_server, copy / "bucket", "after")
    (tmp_path / "elsewhere" / "redis").mkdir(parents=True)
    unpack = ["tar", "-C", tmp_path / "elsewhere" / "redis", "-xf", copy / "queue.tar"]
    await asyncio.to_thread(subprocess.run, unpack, check=True)
    service.environment |= {
        "TANGO_STORE_URL": f"s3://{BUCKET}/after",
        "TANGO_DATA_DIR": str(tmp_path / "elsewhere"),
    }
    await service.run("tango", "up")
    assert "answer 0" in await service.poll("lab", "0.txt")
    starts.write_text("go\n")
    for n in range(1, 7):
        assert (await service.poll("lab", f"{n}.txt")).endswith(f"answer {n}\n")
    assert await submit(service, 7) > max([first, *waiting])
    assert (await service.poll("lab", "7.txt")).endswith("answer 7\n")
