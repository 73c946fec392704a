"""`tango run`: sends a directory to a Tango server, follows the job, shows its feedback.

Files are uploaded under names that begin with their md5, so that two runs in one courselab at the
same time cannot grade each other's files, and what is there already is not sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from .. import names
from ..client import JobRequest, TangoClient, md5_of
from ..errors import BadName, TangoError
from . import result
from .result import Result

Show = Callable[[str], None]
"""Hears what happens, as text for people."""

FIRST_POLL_S, MAX_POLL_S = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to run, as the command line says."""

    files: dict[str, Path]
    """Name on the machine → file."""
    lab: str
    image: str
    copies: int = 1
    timeout_s: int | None = None
    network: bool = True
    priority: int | None = None
    callback_url: str | None = None
    cores: float | None = None
    memory_mb: int | None = None
    quiet: bool = False
    """On cores that nothing else uses meanwhile."""
    requires: tuple[str, ...] = ()
    """Labels of the host."""
    live_to_end: bool = True
    """Whether the live output is completed from the feedback, which is not shown in the same place."""


def collect(directory: Path, extra: tuple[Path, ...]) -> dict[str, Path]:
    """The files of a job: the directory's own, then those named, which win. Raises UsageError.

    A job's files all lie in one directory, so subdirectories are not sent; nor are dot files.
    """
    files: dict[str, Path] = {}
    try:
        entries = sorted(directory.iterdir())
        for entry in [e for e in entries if not e.name.startswith(".") and e.is_file()] + list(extra):
            with entry.open("rb"):
                files[names.file_name(entry.name, "file name")] = entry
    except NotADirectoryError as e:
        raise click.UsageError(f"{directory} is not a directory") from e
    except OSError as e:
        raise click.UsageError(f"{e.filename}: {e.strerror}") from e
    except BadName as e:
        raise click.UsageError(f"{directory}: {e}") from e
    if "Makefile" not in files and "autograde-Makefile" in files:  # as Autolab names it
        files["Makefile"] = files.pop("autograde-Makefile")
    if "Makefile" not in files:
        raise click.UsageError(f"{directory} has no Makefile, whose first target grades")
    return files


def lab_name(directory: Path) -> str:
    """A courselab's name made from the directory's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", directory.resolve().name).strip("-.") or "run"


async def run(client: TangoClient, order: Order, show: Show) -> list[Result]:
    """Uploads, adds every copy, waits for all. `show` hears the live output if there is one copy."""
    uploaded = await _upload(client, order)
    run_id = secrets.token_hex(4)
    async with asyncio.TaskGroup() as tasks:
        copies = [
            tasks.create_task(_one(client, order, uploaded, f"{order.lab}_{run_id}_{n}", show))
            for n in range(1, order.copies + 1)
        ]
    return [copy.result() for copy in copies]


async def _upload(client: TangoClient, order: Order) -> list[tuple[str, str]]:
    """Returns each file's name on the server with its name on the machine."""
    known = await client.open(order.lab)
    uploaded = []
    with _progress(sum(path.stat().st_size for path in order.files.values())) as progress:
        for name, path in order.files.items():
            local = f"{(await asyncio.to_thread(md5_of, path))[:12]}-{name}"
            if len(local.encode()) > names.MAX_NAME_BYTES:
                local = name
            await client.upload(order.lab, local, path, known=known, progress=progress)
            uploaded.append((local, name))
    return uploaded


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda size: None
        return
    with click.progressbar(length=total, label="uploading", file=sys.stderr) as bar:
        yield bar.update


async def _one(
    client: TangoClient,
    order: Order,
    files: list[tuple[str, str]],
    name: str,
    show: Show,
) -> Result:
    request = JobRequest(
        image=order.image,
        job_name=name,
        output_file=f"{name}.txt",
        files=files,
        timeout_s=order.timeout_s,
        callback_url=order.callback_url,
        disable_network=not order.network,
        priority=order.priority,
        vm={name: size for name, size in (("cores", order.cores), ("memory", order.memory_mb)) if size},
        quiet=order.quiet,
        requires=order.requires,
    )
    begun = time.monotonic()
    job = await client.add_job(order.lab, request, idempotency_key=secrets.token_hex(16))
    live = Live(show) if order.copies == 1 else None
    show(f"job {job.id} added{'' if job.message == 'Job added' else f': {job.message}'}\n")
    try:
        feedback = await _follow(client, order.lab, request.output_file, job.id, live)
    except asyncio.CancelledError:
        show(f"\njob {job.id} goes on; end it with: tango cancel {job.id}\n")
        raise
    ended = result.read(job.id, feedback, time.monotonic() - begun)
    if live is not None:
        if order.live_to_end:
            live.update(result.output_of(feedback).decode(errors="replace"))
        live.end()
    else:
        show(f"{line(ended)}\n")
    return ended


async def _follow(client: TangoClient, lab: str, output: str, job_id: int, live: Live | None) -> bytes:
    pause_s = FIRST_POLL_S
    while (feedback := await client.poll(lab, output)) is None:
        if live is not None:
            live.update(await client.partial_output(job_id))
        await asyncio.sleep(pause_s)
        pause_s = min(MAX_POLL_S, pause_s * 1.5)
    return feedback


class Live:
    """Shows an output that is read again and again, each part once."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._shown = ""
        self._lost = False

    def update(self, output: str) -> None:
        # A character that was cut in the middle is whole the next time.
        output = output.rstrip("\ufffd")
        if output.startswith(self._shown):
            if len(output) > len(self._shown):
                self._show(output[len(self._shown) :])
                self._shown, self._lost = output, False
        elif not self._shown.startswith(output) and not self._lost:
            # Past the server's limit only the ends are told; a job that is tried again begins anew.
            self._show("\n[the output goes on; the feedback holds it as the server kept it]\n")
            self._lost = True

    def end(self) -> None:
        if self._shown and not self._shown.endswith("\n"):
            self._show("\n")


def line(ended: Result) -> str:
    """A job's end in one line."""
    status = "" if ended.exit_status is None else f", exit status {ended.exit_status}"
    score = "" if ended.score is None else f", {json.dumps(ended.score.get('scores', ended.score))}"
    return f"job {ended.id}: {ended.verdict or 'no verdict'}{status}{score}, {ended.seconds:.2f} s"


def summary(results: list[Result]) -> str:
    """All copies in one line."""
    passed = sum(one.passed for one in results)
    seconds = [one.seconds for one in results]
    return (
        f"{len(results)} copies: {passed} passed, {len(results) - passed} failed; "
        f"median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s"
    )


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of the copies that failed together, one whose error says something to the user."""
    errors = list(group.exceptions)
    return next((e for e in errors if isinstance(e, TangoError)), errors[0])
