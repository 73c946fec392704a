"""Starts the service all in one, grades a right and a wrong submission with it, and stops it.

Run by `make demo`, or by any Python that has the package: `.venv/bin/python scripts/demo.py`.
Everything is in a temporary directory, removed at the end unless something went wrong. The last
line says how it went; exit status 0 only if both submissions were graded as they should be.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tango_async.cli import terminal

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TANGO = [sys.executable, "-m", "tango_async.cli.tango"]
READY = re.compile(r"ready: http on (\S+), vmms (\w+)")
READY_S, RUN_S, STOP_S = 60, 120, 60
JOB_PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where a sandboxed job finds the host's programs."""


class Failed(Exception):
    """Says what went wrong, and what to do."""


@dataclass(frozen=True)
class Service:
    url: str
    vmms: str
    environment: dict[str, str]


@dataclass(frozen=True)
class Example:
    folder: str
    submitted: str
    needs: str


CHOICES = [
    Example("c-queue", "queue.c", "cc"),
    Example("python-calc", "calc.py", "python3"),
    Example("shell-topwords", "topwords.sh", "sh"),
]


def say(text: str = "") -> None:
    print(text, flush=True)


def main() -> int:
    data_dir = Path(tempfile.mkdtemp(prefix="tango-demo-"))
    try:
        with running(data_dir) as service:
            example = choose(service.vmms)
            scores = [grade(service, example, which) for which in ("right", "wrong")]
            if not scores[0] > scores[1] > 0:
                raise Failed(f"the scores {scores} are not those of a right and a partly wrong submission")
            show_status(service)
    except Failed as e:
        say(f"demo: failed: {e}")
        say(f"demo: the service's log and data are kept in {data_dir}")
        return 1
    except KeyboardInterrupt:
        say("demo: interrupted")
        return 130
    shutil.rmtree(data_dir)
    say(f"demo: graded 2 submissions on {service.vmms}: {scores[0]}, {scores[1]}")
    return 0


@contextmanager
def running(data_dir: Path) -> Iterator[Service]:
    """`tango up` from its being ready to its exit with status 0."""
    key, log = secrets.token_hex(8), data_dir / "service.log"
    ours = {k: v for k, v in os.environ.items() if k in ("TANGO_VMMS", "TANGO_REDIS_SERVER") or k[:6] != "TANGO_"}
    environment = ours | {
        "TANGO_HOST": "127.0.0.1",
        "TANGO_PORT": str(free_port()),
        "TANGO_KEYS": key,
        "TANGO_DATA_DIR": str(data_dir / "data"),
    }
    say("$ tango up")
    with log.open("wb") as output:
        process = subprocess.Popen([*TANGO, "up"], env=environment, stdin=subprocess.DEVNULL, stderr=output)
    try:
        url, vmms = wait_until_ready(process, log)
        say(f"ready: {url}, machines by {vmms}\n")
        yield Service(url, vmms, ours | {"TANGO_URL": url, "TANGO_KEY": key})
    finally:
        process.terminate()
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = -9
    if status != 0:
        raise Failed(f"the service ended with status {status} after SIGTERM:\n{tail(log)}")
    say("the service has stopped\n")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if found := READY.search(log.read_text(errors="replace")):
            return found[1], found[2]
        if ended:
            raise Failed(f"the service did not start, and says why and what to do:\n{tail(log)}")
        time.sleep(0.05)
    raise Failed(f"the service was not ready within {READY_S} s:\n{tail(log)}")


def tail(log: Path) -> str:
    return "\n".join("  " + line for line in log.read_text(errors="replace").splitlines()[-15:])


def choose(vmms: str) -> Example:
    """C if the job will find a compiler. The grading image has one; a sandbox has what the host has."""
    for example in CHOICES:
        if vmms != "localSandbox" or shutil.which(example.needs, path=JOB_PATH):
            return example
    raise Failed("there is no /bin/sh")


def grade(service: Service, example: Example, which: str) -> int:
    """Runs one submission as an instructor would; live output goes to standard error. Returns its points."""
    folder = EXAMPLES / example.folder
    submission = folder / "submissions" / which / example.submitted
    shown = [str(path.relative_to(EXAMPLES.parent)) for path in (folder, submission)]
    say(f"$ tango run {shown[0]} --with {shown[1]}")
    command = [*TANGO, "run", str(folder), "--with", str(submission), "--timeout", "30"]
    try:
        done = subprocess.run(command, env=service.environment, stdout=subprocess.PIPE, timeout=RUN_S, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"the {which} submission was not graded within {RUN_S} s") from None
    say(f"\nthe feedback of the {which} submission:\n")
    terminal.write_bytes(done.stdout)
    say()
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    try:
        return sum(json.loads(lines[-1])["scores"].values())
    except (IndexError, ValueError, KeyError, TypeError):
        raise Failed(f"the {which} submission got no scores (exit status {done.returncode})") from None


def show_status(service: Service) -> None:
    say("$ tango jobs --dead")
    listed = subprocess.run([*TANGO, "jobs", "--dead"], env=service.environment, timeout=RUN_S, check=False)
    if listed.returncode != 0:
        raise Failed("the service does not list its jobs")
    key = service.environment["TANGO_KEY"]
    say(f"\nthe status API: {service.url}/info/{key}/ and {service.url}/jobs/{key}/0/ (live), /1/ (dead)\n")


if __name__ == "__main__":
    sys.exit(main())
