"""docs/backup.md, drilled: copied while it runs by deploy/backup.sh, restored elsewhere, and graded to the end."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.service import Service

ROOT = Path(__file__).parents[2]
MAKEFILE = b"autograde:\n\t@sleep 0.3; cat answer\n"
HELD = b"autograde:\n\t@until [ -s /starts ]; do sleep 0.05; done; cat answer\n"


@pytest.fixture
async def running(service: Service, starts: Path) -> AsyncIterator[Service]:
    """`tango up` with its own Redis, one slot, and leases that are soon over."""
    del service.environment["TANGO_REDIS_URL"]
    service.environment |= {
        "TANGO_SLOTS": "1",
        "TANGO_DISPATCHER_GRACE_S": "0.1",
        "TANGO_DISPATCHER_LEASE_S": "1",
        "TANGO_DISPATCHER_ADOPT_GRACE_S": "1",
        "TANGO_DISPATCHER_UPKEEP_S": "0.3",
    }
    await service.run("tango", "up")
    yield service


async def submit(service: Service, number: int, makefile: bytes = MAKEFILE) -> int:
    """A job whose input is its own, and is replaced by the next one's."""
    await service.upload("lab", {"Makefile": makefile, "answer": b"answer %d\n" % number})
    return await service.add("lab", ["Makefile", "answer"], f"{number}.txt")


async def back_up(service: Service, to: Path) -> None:
    command = [ROOT / "deploy" / "backup.sh", service.environment["TANGO_DATA_DIR"], to]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def restore(service: Service, at: Path, *, files: Path, queue: Path) -> None:
    """Elsewhere, with the commands of the document."""
    await service.end()
    document = (ROOT / "docs" / "backup.md").read_text()
    [commands] = re.findall(r"## Restore.*?```sh\n(.*?)```", document, re.DOTALL)
    (at / "from").mkdir(parents=True)
    for name, origin in (("pins.tar", files), ("files.tar", files), ("queue.tar", queue)):
        (at / "from" / name).symlink_to(origin / name)
    data = at / "data"
    script = ["sh", "-eu", "-c", f"DATA='{data}' FROM='{at / 'from'}'\n{commands}"]
    await asyncio.to_thread(subprocess.run, script, check=True)
    service.environment["TANGO_DATA_DIR"] = str(data)
    await service.run("tango", "up")


async def test_what_was_copied_while_it_ran_goes_on_elsewhere(running: Service, starts: Path, tmp_path: Path) -> None:
    first = [await submit(running, n) for n in range(2)]
    assert "answer 1" in await running.poll("lab", "1.txt")
    waiting = [await submit(running, n) for n in range(2, 7)]
    waiting.append(await submit(running, 7, HELD))
    adding = asyncio.create_task(submit(running, 99))
    await back_up(running, tmp_path / "copy")
    given = await adding
    await restore(running, tmp_path / "elsewhere", files=tmp_path / "copy", queue=tmp_path / "copy")
    assert "answer 0" in await running.poll("lab", "0.txt")
    starts.write_text("go\n")
    for n in range(2, 8):
        assert (await running.poll("lab", f"{n}.txt")).endswith(f"answer {n}\n")
    assert await submit(running, 100) > max([*first, *waiting, given])
    assert (await running.poll("lab", "100.txt")).endswith("answer 100\n")


async def test_ids_go_on_above_the_mark_when_the_queue_is_older_than_the_files(
    running: Service, tmp_path: Path
) -> None:
    await submit(running, 0)
    await running.poll("lab", "0.txt")
    await back_up(running, tmp_path / "old")
    last = [await submit(running, n) for n in range(1, 4)][-1]
    await running.poll("lab", "3.txt")
    await back_up(running, tmp_path / "new")
    await restore(running, tmp_path / "elsewhere", files=tmp_path / "new", queue=tmp_path / "old")
    assert await submit(running, 4) > last
    assert "answer 0" in await running.poll("lab", "0.txt")
    assert (await running.poll("lab", "4.txt")).endswith("answer 4\n")
    assert (await running.json("GET", "/poll/test/lab/3.txt"))["statusMsg"] == "Output file not found"


def test_a_copy_of_what_is_not_there_or_into_no_space_fails(tmp_path: Path) -> None:
    data, to = tmp_path / "data", tmp_path / "copy"

    def run() -> int:
        return subprocess.run([ROOT / "deploy" / "backup.sh", data, to], capture_output=True, check=False).returncode

    assert run() != 0
    (data / "courselabs" / ".tango" / "pins").mkdir(parents=True)
    assert run() != 0
    (data / "redis" / "appendonlydir").mkdir(parents=True)
    assert run() != 0
    (data / "redis" / "appendonlydir" / "a.manifest").write_text("file a.1.incr.aof seq 1 type i\n")
    assert run() == 0
    (to / "queue.tar").unlink()
    (to / "queue.tar").symlink_to("/dev/full")
    assert run() != 0
