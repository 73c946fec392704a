"""Grades the three examples on one back-end with the real service, and checks the scores.

    grade.py localSandbox|localDocker|distDocker|ec2SSH|tashiSSH

Run by `make grade VMMS=…`. tango-http and tango-dispatcher are processes of their own over a private Redis;
what the back-end needs stands on this machine, and all of it is cleared at the end. With TANGO_CONFIG the
back-end is the one that this file's settings name, and nothing stands in for it. Exit status 0 only if every
right and every wrong submission got the scores that its README declares, 3 if this machine lacks something.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.backends import STANDS_ON, standing  # noqa: E402
from support.engine import Lacking, build_image  # noqa: E402
from support.examples import ASSIGNMENTS, declared, grade, scores  # noqa: E402
from support.redis_server import RedisServer, server_programs  # noqa: E402
from support.service import Service  # noqa: E402

FAILED, LACKING, INTERRUPTED = 1, 3, 130
WITHIN_S = 900.0
"""Longest wait for one feedback. An instance of a real cloud takes minutes to boot."""
STOP_S = 60.0
"""More than running jobs are let run after SIGTERM, so that an interruption leaves no machine either."""
INSIDE = "GRADE_INSIDE"
OWN_NETWORK = ("distDocker", "ec2SSH", "tashiSSH")
"""Their hosts have addresses of their own, which must not meet those of this machine."""
OURS = ("http", "queue", "store", "s3")
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


class Failed(Exception):
    """Says what went wrong."""


def say(text: str = "") -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vmms", choices=list(STANDS_ON))
    vmms: str = parser.parse_args().vmms
    config = os.environ.get("TANGO_CONFIG")
    directory = None
    try:
        if vmms.endswith("Docker") and not config and INSIDE not in os.environ:
            say("grade: the grading image is made of Debian packages if it is not there yet, which takes some minutes")
        if vmms in OWN_NETWORK and not config:
            enter_own_network(vmms)
        directory = Path(tempfile.mkdtemp(prefix="tango-grade-"))
        went = asyncio.run(run(vmms, Path(config).absolute() if config else None, directory))
    except Lacking as e:
        went, status = f"this machine lacks something for {vmms}: {e}", LACKING
    except Failed as e:
        say(f"grade: failed: {e}")
        say(f"grade: the logs are kept in {directory}")
        return FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        went, status = "interrupted", INTERRUPTED
    else:
        status = 0
    if directory is not None:
        shutil.rmtree(directory)
    say(f"grade: {went}; all is stopped and cleared")
    return status


def enter_own_network(vmms: str) -> None:
    """Starts this program anew in a network namespace of its own; there, only sets its loopback up. Raises Lacking."""
    if INSIDE in os.environ:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        return
    if os.geteuid() != 0:
        raise Lacking(f"not root; type: sudo make grade VMMS={vmms}")
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise Lacking(f"no network namespace can be made ({tried.stderr.strip()}): a container must be privileged")
    if vmms == "distDocker":
        build_image()  # the world is not to be reached from there
    os.execvpe("unshare", ["unshare", "--net", sys.executable, *sys.argv], os.environ | {INSIDE: "1"})


async def run(vmms: str, config: Path | None, directory: Path) -> str:
    """How it went. Raises Lacking and Failed."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began = time.monotonic()
    say(f"grade: {vmms} on {STANDS_ON[vmms] if config is None else f'what {config} names'}")
    async with (
        standing(vmms, directory) if config is None else named_by(config, vmms) as settings,
        serving(settings, directory) as service,
    ):
        right, wanted = await graded(service)
    if right < wanted:
        raise Failed(f"{right} of {wanted} submissions got the scores that their examples declare")
    return f"{vmms} graded {right} submissions as their examples declare, in {time.monotonic() - began:.0f} s"


@asynccontextmanager
async def named_by(config: Path, vmms: str) -> AsyncIterator[dict[str, str]]:
    """Raises Lacking where the file names more than the back-end: the rest is this program's own."""
    try:
        tables = tomllib.loads(config.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise Lacking(f"TANGO_CONFIG={config}: {e}") from e
    if others := [name for name in OURS if name in tables]:
        raise Lacking(f"a file without [{'], ['.join(others)}] in TANGO_CONFIG: only the back-end is taken from it")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("TANGO_")}
    yield {**outside, "TANGO_VMMS": vmms, "TANGO_CONFIG": str(config)}


@asynccontextmanager
async def serving(settings: dict[str, str], directory: Path) -> AsyncIterator[Service]:
    """The service over a Redis of its own, from its being ready to its end. Raises Lacking and Failed."""
    programs = server_programs()
    if not programs:
        raise Lacking("no Redis: apt-get install redis-server")
    redis = RedisServer(directory, options=("--save", "", "--appendonly", "yes", "--appendfsync", "always"))
    own = {
        "TANGO_KEYS": secrets.token_hex(8),
        "TANGO_HOST": "127.0.0.1",
        "TANGO_PORT": "0",
        "TANGO_DATA_DIR": str(directory / "data"),
        "TANGO_DISPATCHER_STATE_DIR": str(directory / "state"),
        "TANGO_REDIS_URL": redis.url,
    }
    service = Service(directory, settings | own, key=own["TANGO_KEYS"])
    redis.start()
    try:
        for name in ("tango-http", "tango-dispatcher"):
            try:
                said = await (await service.run(name)).ready()
            except (AssertionError, TimeoutError):
                raise Failed(f"{name} is not ready, and says why:\n{service.processes[-1].said()[-2000:]}") from None
            say(f"  {name}: {said}")
        engine = settings.get("DOCKER_HOST")
        say(f"  queue: {next(iter(programs))}" + (f"; engine: {engine}" if engine else "") + "\n")
        yield service
        for process in service.processes:
            if (status := await process.stop(STOP_S)) != 0:
                raise Failed(f"{process.name} ended with status {status}:\n{process.said()[-2000:]}")
    finally:
        for process in service.processes:
            with suppress(TimeoutError):
                await process.stop(STOP_S)
            process.kill()
        redis.kill()


async def graded(service: Service) -> tuple[int, int]:
    """Prints a line a submission; how many got the scores that are declared, of how many."""
    form = "  {:16} {:11} {:34} {}"
    say(form.format("assignment", "submission", "scores", "declared"))
    right, jobs = 0, []
    async with asyncio.TaskGroup() as group:
        for assignment in ASSIGNMENTS:
            for submission, points in declared(assignment).items():
                jobs.append((assignment, submission, points, group.create_task(one(service, assignment, submission))))
        for assignment, submission, points, job in jobs:
            said, got = await job
            right += got == points
            declares = " and ".join(map(str, points)) + ("" if got == points else ": WRONG")
            say(form.format(assignment, submission, said, declares))
    say()
    return right, len(jobs)


async def one(service: Service, assignment: str, submission: str) -> tuple[str, list[int]]:
    """The scores in words, and alone; a feedback without any is printed."""
    try:
        feedback = await grade(service, assignment, submission, WITHIN_S)
    except (AssertionError, TimeoutError, aiohttp.ClientError) as e:
        return f"no feedback: {e!r}", []
    try:
        got = scores(feedback)
    except ValueError:
        say(f"the feedback of {assignment}, {submission}:\n{feedback}")
        return "none", []
    return ", ".join(f"{problem} {points}" for problem, points in got.items()), list(got.values())


if __name__ == "__main__":
    sys.exit(main())
