"""Keys from a file and the erasure of a submitter, with the processes that an operator runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from support.service import PATIENCE_S, Process, Service

ME = "student@example.edu"
SLOW = b"autograde:\n\t@echo begun; sleep 30\n"


def write_keys(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(text)
    os.utime(draft, (1, 1))
    draft.replace(path)


async def test_a_running_submitter_is_erased_from_disk_and_lists(service: Service, sandbox: None) -> None:
    await service.run("tango-http")
    await service.run("tango-dispatcher")
    await service.upload("lab", {"Makefile": SLOW, f"{ME}_1_m.c": b"mine", "b@x.edu_1_m.c": b"other"})
    job_id = await service.add("lab", ["Makefile", f"{ME}_1_m.c"], f"{ME}_1_lab_autograde.txt", timeout=60)
    async with asyncio.timeout(PATIENCE_S):
        while "begun" not in (await service.json("GET", f"/getPartialOutput/test/{job_id}/"))["output"]:
            await asyncio.sleep(0.05)
    erased = (await service.json("POST", "/erase/test/", data=f'{{"submitter": "{ME}"}}'))["erased"]
    assert (erased["jobs"], erased["running"]) == (1, 0)
    assert (await service.json("GET", "/jobs/test/1/"))["jobs"] == []
    data = Path(service.environment["TANGO_DATA_DIR"]) / "courselabs"
    emptied = [data / ".tango" / "outputs", data / ".tango" / "pins"]
    async with asyncio.timeout(PATIENCE_S):  # the dispatcher tidies up after the job has ended
        while any(ME in name for _, _, names in os.walk(data) for name in names) or any(map(os.listdir, emptied)):
            await asyncio.sleep(0.05)
    assert (data / "test-lab" / "b@x.edu_1_m.c").read_bytes() == b"other"


async def test_a_key_is_taken_away_and_another_given_without_a_restart(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    write_keys(file, '[keys.autolab]\nkey = "first"\n')
    del service.environment["TANGO_KEYS"]
    service.environment["TANGO_KEYS_FILE"] = str(file)
    server = await service.run("tango-http")
    assert (await service.json("GET", "/info/first/"))["statusId"] == 0
    write_keys(file, '[keys.autolab]\nkey = "second"\n')
    async with asyncio.timeout(PATIENCE_S):
        while (await service.json("GET", "/info/first/"))["statusId"] == 0:
            await asyncio.sleep(0.1)
    assert (await service.json("GET", "/info/second/"))["statusId"] == 0
    assert "first" not in server.said() and "second" not in server.said()


async def test_a_server_with_a_broken_file_of_keys_does_not_start(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[keys.autolab]\nkey = "s3cret"\nscope = ["admin"]\n')
    environment = {**service.environment, "TANGO_KEYS_FILE": str(file)}
    for name, arguments in (("tango-http", []), ("tango", ["up"])):
        process = Process(name, list(arguments), environment, tmp_path / f"{name}.log")
        assert await process.ended() == 2
        assert "keys.autolab" in process.said() and "s3cret" not in process.said()
