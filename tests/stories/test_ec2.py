"""The whole service on a cloud: jobs over HTTP, instances by the EC2 API, programs over SSH."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from stories.conftest import Receiver
from support import backends
from support.ec2 import OTHER_KEY, SECRET, Cloud
from support.redis_server import RedisServer
from support.service import PATIENCE_S, Service

TICKS = "autograde:\n\t@for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo tick $$i; sleep 0.25; done\n"
POOLS = """
[[pools.image]]
pattern = "*"
min = 1
demand = 2
max = 3
idle_s = 15.0
"""
SAID = "".join(f"tick {i}\n" for i in range(1, 13))


@pytest.fixture
async def on_ec2(cloud: Cloud, environment: dict[str, str], service: Service) -> Service:
    """The service with one HTTP server; instances are in the cloud's subnet."""
    environment |= backends.ec2(cloud) | {"TANGO_DISPATCHER_GRACE_S": "1"}
    await service.run("tango-http")
    return service


async def add(service: Service, name: str, makefile: str, **fields: object) -> int:
    await service.upload(name, {"Makefile": makefile.encode()})
    return await service.add(name, ["Makefile"], "out.txt", **fields)


async def running(service: Service, job_id: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while "tick" not in (await service.json("GET", f"/getPartialOutput/test/{job_id}/"))["output"]:
            await asyncio.sleep(0.05)


async def empty(cloud: Cloud) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await cloud.living():
            await asyncio.sleep(0.05)


async def test_a_job_is_graded_on_an_instance_that_goes_with_it(on_ec2: Service, cloud: Cloud) -> None:
    await on_ec2.run("tango-dispatcher")
    await add(on_ec2, "hello", "autograde:\n\t@id -un; echo hello\n")
    feedback = await on_ec2.poll("hello", "out.txt")
    assert "Success: Autodriver returned normally" in feedback and feedback.endswith("autograde\nhello\n")
    await empty(cloud)


async def test_a_job_outlives_its_dispatcher_and_is_followed_by_the_next(on_ec2: Service, cloud: Cloud) -> None:
    first = await on_ec2.run("tango-dispatcher")
    job_id = await add(on_ec2, "long", TICKS)
    await running(on_ec2, job_id)
    first.kill()
    await on_ec2.run("tango-dispatcher")
    assert (await on_ec2.poll("long", "out.txt")).endswith(SAID)
    assert cloud.calls["RunInstances"] == 1
    await empty(cloud)


async def test_a_job_is_cancelled_while_its_instance_boots(on_ec2: Service, cloud: Cloud) -> None:
    cloud.boots = False
    await on_ec2.run("tango-dispatcher", TANGO_EC2_BOOT_S="600", TANGO_DISPATCHER_MACHINE_WAIT_S="700")
    await add(on_ec2, "boots", "autograde:\n\t@echo never\n")
    async with asyncio.timeout(30):
        while not await cloud.living():
            await asyncio.sleep(0.05)
    await on_ec2.json("POST", "/cancel/test/boots/out.txt/")
    feedback = await on_ec2.poll("boots", "out.txt")
    assert "Error: Job was cancelled" in feedback and "never" not in feedback
    await empty(cloud)


async def test_a_job_whose_spot_instance_is_taken_back_runs_again(
    on_ec2: Service, cloud: Cloud, receiver: Receiver
) -> None:
    """The API is away for some time, too: what else is asked of the service goes on."""
    await on_ec2.run("tango-dispatcher", TANGO_EC2_SPOT="1", TANGO_DISPATCHER_JOB_RETRIES="0")
    ended = await add(on_ec2, "ended", "autograde:\n\t@echo hello\n")
    await on_ec2.poll("ended", "out.txt")
    job_id = await add(on_ec2, "spot", TICKS, callback_url=receiver.url)
    await running(on_ec2, job_id)
    async with asyncio.timeout(PATIENCE_S):
        while len(living := await cloud.living()) > 1:  # the first one goes when its job has ended
            await asyncio.sleep(0.05)
    (one,) = living
    cloud.away = True
    waits = await add(on_ec2, "waits", "autograde:\n\t@echo hello\n", callback_url=receiver.url)
    assert ended < job_id < waits
    assert (await on_ec2.json("GET", "/open/test/waits/"))["files"].keys() == {"Makefile"}
    cloud.away = False
    await cloud.take_back(one["InstanceId"])
    assert (feedback := await on_ec2.poll("spot", "out.txt")).endswith(SAID)
    job = next(job for job in (await on_ec2.json("GET", "/jobs/test/1/"))["jobs"] if job["id"] == job_id)
    assert job["retries"] == 0 and any("The cloud took its machine back" in line for line in job["trace"])
    await receiver.has(2)
    assert sorted(receiver.came) == sorted([feedback, await on_ec2.poll("waits", "out.txt")])
    assert await add(on_ec2, "later", "autograde:\n\t@echo hello\n") > waits
    await on_ec2.poll("later", "out.txt")
    await empty(cloud)


async def test_a_jobs_own_account_is_used_and_its_secret_is_nowhere_afterwards(
    on_ec2: Service, cloud: Cloud, tmp_path: Path, redis_server: RedisServer
) -> None:
    dispatcher = await on_ec2.run("tango-dispatcher")
    job_id = await add(
        on_ec2, "own", TICKS, accessKeyId=OTHER_KEY, accessKey=SECRET + "-mine", instanceType="t3.medium"
    )
    await running(on_ec2, job_id)
    (one,) = await cloud.living()
    assert one["InstanceType"] == "t3.medium" and len(await cloud.instances(OTHER_KEY)) == 1
    assert (await on_ec2.poll("own", "out.txt")).endswith(SAID)
    await empty(cloud)
    assert await dispatcher.stop() == 0
    shown = b"".join([(await on_ec2.call("GET", f"/jobs/test/{which}/"))[2] for which in (0, 1)])
    async with Redis.from_url(redis_server.url) as redis:
        async for key in redis.scan_iter(on_ec2.environment["TANGO_QUEUE_PREFIX"] + "*"):
            shown += await redis.dump(key) or b""
    for file in tmp_path.rglob("*"):
        shown += file.read_bytes() if file.is_file() else b""
    assert b"-mine" not in shown and OTHER_KEY.encode() not in shown


async def test_what_a_job_asks_in_vain_ends_it_with_a_word(on_ec2: Service, cloud: Cloud) -> None:
    await on_ec2.run("tango-dispatcher")
    await add(on_ec2, "wrong", TICKS, accessKeyId="AKIANOBODY", accessKey="-mine")
    assert "addJob's accessKeyId and accessKey: AWS refuses them" in await on_ec2.poll("wrong", "out.txt")
    await add(on_ec2, "ami", TICKS, ami="ami-0123456789abcdef0")
    assert "addJob's ami: " in await on_ec2.poll("ami", "out.txt")
    assert not await cloud.living()


async def instances(cloud: Cloud, number: int, used: set[str], within_s: float = PATIENCE_S) -> set[str]:
    """Their ids, once there are so many, none of them used, and each lets somebody in."""
    async with asyncio.timeout(within_s):
        while True:
            found = {one["InstanceId"] for one in await cloud.living()}
            if len(found) == number and found <= cloud.vms.keys() - used:
                return found
            await asyncio.sleep(0.05)


async def test_a_pool_keeps_its_least_never_has_more_than_its_most_and_outlasts_a_lull(
    on_ec2: Service, cloud: Cloud, tmp_path: Path
) -> None:
    config = tmp_path / "tango.toml"
    config.write_text(POOLS)
    gate = tmp_path / "gate"
    gate.touch()
    cloud.shared[gate] = "/gate"
    dispatcher = await on_ec2.run("tango-dispatcher", TANGO_CONFIG=str(config), TANGO_SLOTS="5")
    await instances(cloud, 1, set())
    for number in range(5):
        await add(on_ec2, f"busy{number}", "autograde:\n\t@until [ -s /gate ]; do sleep 0.05; done; uname -n\n")
    most = 0
    async with asyncio.timeout(PATIENCE_S):
        while len((await on_ec2.json("GET", "/jobs/test/1/"))["jobs"]) < 5:
            most = max(most, len(await cloud.living()))
            if most == 3:
                gate.write_text("go\n")
            await asyncio.sleep(0.05)
    assert most == 3, "one for each job that was claimed, and no more than max"
    used = {(await on_ec2.poll(f"busy{number}", "out.txt")).split()[-1] for number in range(5)}
    assert len(used) == 5
    waiting = await instances(cloud, 2, used)
    await add(on_ec2, "lull", "autograde:\n\t@uname -n\n")
    used.add((await on_ec2.poll("lull", "out.txt")).split()[-1])
    assert len(waiting - used) == 1
    await instances(cloud, 2, used)
    launched = cloud.calls["RunInstances"]
    await instances(cloud, 1, used)
    assert await dispatcher.stop() == 0
    await empty(cloud)
    assert cloud.calls["RunInstances"] == launched


async def ended(service: Service, number: int, within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while len((await service.json("GET", "/jobs/test/1/"))["jobs"]) < number:
            await asyncio.sleep(0.1)


async def test_a_burst_of_short_jobs_is_worked_off_by_one_instance_whoever_claims_them(
    on_ec2: Service, cloud: Cloud
) -> None:
    dispatchers = [
        await on_ec2.run("tango-dispatcher", TANGO_SLOTS="6", TANGO_EC2_REUSE="1", TANGO_EC2_SCALE_AFTER_S="3600")
        for _ in range(2)
    ]
    for number in range(12):
        await add(on_ec2, f"short{number}", "autograde:\n\t@uname -n\n")
    await ended(on_ec2, 12)
    used = {(await on_ec2.poll(f"short{number}", "out.txt")).split()[-1] for number in range(12)}
    assert cloud.calls["RunInstances"] == len(used) == 1
    for dispatcher in dispatchers:
        assert await dispatcher.stop() == 0
    await empty(cloud)


async def test_a_standing_backlog_has_as_many_as_may_be_and_afterwards_the_least_stay(
    on_ec2: Service, cloud: Cloud, tmp_path: Path
) -> None:
    config = tmp_path / "tango.toml"
    config.write_text('[[pools.image]]\npattern = "*"\nmin = 1\nmax = 4\n')
    scaled = {"REUSE": "1", "JOBS_PER_INSTANCE": "2", "SCALE_AFTER_S": "1", "IDLE_S": "6"}
    dispatcher = await on_ec2.run(
        "tango-dispatcher",
        TANGO_CONFIG=str(config),
        TANGO_SLOTS="8",
        **{f"TANGO_EC2_{name}": value for name, value in scaled.items()},
    )
    await instances(cloud, 1, set())
    for number in range(10):
        await add(on_ec2, f"long{number}", TICKS + "\t@sleep 3; uname -n\n")
    most = 0
    while len((await on_ec2.json("GET", "/jobs/test/1/"))["jobs"]) < 10:
        most = max(most, len(await cloud.living()))
        await asyncio.sleep(0.05)
    assert most == 4
    used = {(await on_ec2.poll(f"long{number}", "out.txt")).split()[-1] for number in range(10)}
    # One that boots slowly may come too late for any job.
    assert cloud.calls["RunInstances"] == 4 and 1 < len(used) <= 4
    async with asyncio.timeout(PATIENCE_S):
        while len(await cloud.living()) > 1:
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    assert len(await cloud.living()) == 1 and cloud.calls["RunInstances"] == 4
    assert await dispatcher.stop() == 0
    await empty(cloud)
