"""Tango's answers: every name that its clients read, in Tango's form, and nothing of what it means.

The names come from Autolab's client and from recorded answers of Tango. What clients send is in `requests`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from ..feedback import ctime
from ..model import CallbackRecord, Forecast, JobRecord, JobState

OK, FAILED = 0, -1
"""Values of statusId. Clients take every negative one for an error."""

encode = msgspec.json.Encoder().encode


class Answer(Struct, frozen=True, kw_only=True):
    """What every answer has."""

    status_id: int = field(default=OK, name="statusId")
    status_msg: str | list[str] = field(name="statusMsg")


class Opened(Answer, frozen=True, kw_only=True):
    files: dict[str, str]


class Added(Answer, frozen=True, kw_only=True):
    job_id: int = field(name="jobId")


class Partial(Answer, frozen=True, kw_only=True):
    output: str


class PoolEntry(Struct, frozen=True, kw_only=True):
    """Numbers of all machines and of those that wait. Tango has no `problem`, and it is there only if there is one."""

    total: tuple[int, ...]
    free: tuple[int, ...]
    problem: str | UnsetType = UNSET


class Pools(Answer, frozen=True, kw_only=True):
    pools: dict[str, PoolEntry]


class Info(Struct, frozen=True, kw_only=True):
    elapsed_secs: float
    job_requests: int
    job_retries: int
    waitvm_timeouts: int
    runjob_timeouts: int
    copyin_errors: int
    runjob_errors: int
    copyout_errors: int
    num_threads: int
    unoffered: dict[str, int]
    """Jobs that wait for what no living dispatcher offers, by what it is. Not in Tango."""


class InfoFound(Answer, frozen=True, kw_only=True):
    info: Info


class Vm(Struct, frozen=True, kw_only=True):
    """Where a job runs. Clients want the object and a name; Tango leaves most of the rest null."""

    id: str | None
    name: str
    image: str
    vmms: str | None = None
    cores: float
    memory: int
    disk: int
    network: bool
    resume: None = None


class JobEntry(Struct, frozen=True, kw_only=True, rename="camel"):
    retries: int
    output_file: str
    name: str
    notify_url: str | None = field(name="notifyURL")
    max_output_file_size: int
    assigned: bool
    timeout: int
    id: int
    trace: list[str]
    vm: Vm
    input: list[dict[str, str]]
    position: int | None
    """Jobs that start before it; null unless it is queued. This and the next two are not in Tango."""
    eta_secs: float | None
    """Until it starts; null if nobody knows."""
    eta_error_secs: float | None
    """By how much such forecasts were wrong lately."""


class Jobs(Answer, frozen=True, kw_only=True):
    jobs: list[JobEntry]


class Position(Answer, frozen=True, kw_only=True, rename="camel"):
    """What is foretold of one job."""

    job_id: int
    state: str
    position: int | None
    eta_secs: float | None
    eta_error_secs: float | None


class CallbackEntry(Struct, frozen=True, kw_only=True):
    """A callback as it stands. Dates are as in a job's trace."""

    id: int
    name: str
    courselab: str
    url: str
    state: str
    due: str | None
    tries: int
    last: str | None
    log: list[str] | None = None


class Callbacks(Answer, frozen=True, kw_only=True):
    callbacks: list[CallbackEntry]


class Erased(Struct, frozen=True, kw_only=True):
    """What an erasure removed, and what it could not yet."""

    jobs: int
    callbacks: int
    files: int
    bytes: int
    running: int


class ErasedAnswer(Answer, frozen=True, kw_only=True):
    erased: Erased


class ImageEntry(Struct, frozen=True):
    """An image; `hosts` are the places that have it, and its id there, if that is known."""

    name: str
    hosts: dict[str, str]


class OrderState(Struct, frozen=True, kw_only=True):
    """What has become of an order on one host; neither done nor a problem: it is still to be done there."""

    done: bool
    problem: str


class ImageOrder(Struct, frozen=True, kw_only=True):
    """`what` is load, pull or push."""

    image: str
    what: str
    hosts: dict[str, OrderState]


class Images(Answer, frozen=True, kw_only=True):
    images: list[ImageEntry]
    orders: list[ImageOrder]


class EngineEntry(Struct, frozen=True):
    """One of several engines of a dispatcher."""

    name: str
    slots: int
    busy: int
    healthy: bool
    problem: str
    images: list[str]


class HostEntry(Struct, frozen=True, kw_only=True):
    """A dispatcher. `state` is ready, paused, failing (its jobs), ill (its engine) or down.

    `age` is the seconds since its last beat.
    """

    install: str
    host: str
    state: str
    vmms: str
    version: str
    slots: int
    busy: int
    paused: bool
    quiet_cores: int
    labels: tuple[str, ...]
    healthy: bool
    problem: str
    images: tuple[str, ...]
    engines: list[EngineEntry]
    age: float


class Hosts(Answer, frozen=True, kw_only=True):
    hosts: list[HostEntry]


def callback_entry(record: CallbackRecord, *, log: bool = False) -> CallbackEntry:
    lines = [f"{ctime(line.at_ms)}|{line.text}" for line in record.log]
    return CallbackEntry(
        id=record.id,
        name=record.spec.name,
        courselab=record.spec.courselab,
        url=record.url,
        state=record.state,
        due=ctime(record.due_ms) if record.due_ms else None,
        tries=record.tries,
        last=lines[-1] if lines else None,
        log=lines if log else None,
    )


def job_entry(job: JobRecord, forecast: Forecast | None = None) -> JobEntry:
    """A job as /jobs/ shows it: the key in its paths replaced by the word KEY."""
    spec, limits = job.spec, job.spec.limits
    folder = f"courselabs/KEY-{spec.courselab}"
    return JobEntry(
        id=job.id,
        name=spec.name,
        assigned=job.state in (JobState.ASSIGNED, JobState.RUNNING),
        retries=job.retries,
        notify_url=spec.callback_url,
        timeout=limits.timeout_s,
        max_output_file_size=limits.output_bytes,
        output_file=f"{folder}/output/{spec.output_name}",
        input=[{"localFile": f"{folder}/{f.local}", "destFile": f.dest} for f in spec.files],
        # Clients split a line at '|' and look at the last one, so there is always one.
        trace=[f"{ctime(line.at_ms)}|{line.text.replace('|', '/')}" for line in job.trace]
        or [f"{ctime(job.added_ms)}|Added job {job.id}"],
        vm=Vm(
            id=job.machine or None,
            name=spec.image,
            image=spec.image,
            vmms=job.vmms or None,
            cores=limits.cores,
            memory=limits.memory_bytes >> 20,
            disk=limits.disk_bytes >> 20,
            network=spec.network,
        ),
        **foretold(forecast),
    )


def foretold(forecast: Forecast | None) -> dict[str, Any]:
    """The fields of a job's forecast; null without one."""
    if forecast is None:
        return dict.fromkeys(("position", "eta_secs", "eta_error_secs"))
    return {"position": forecast.position, "eta_secs": forecast.eta_s, "eta_error_secs": forecast.error_s}


def encode_jobs(jobs: Iterable[JobRecord], forecasts: Mapping[int, Forecast]) -> bytes:
    """The answer of /jobs/. Takes milliseconds for a thousand jobs, so call it in a thread."""
    entries = [job_entry(job, forecasts.get(job.id)) for job in jobs]
    return encode(Jobs(status_msg="Found list of jobs", jobs=entries))


def rejection(reasons: list[str]) -> list[str]:
    """Why addJob refuses, in the form of trace lines, as Autolab prints them."""
    now = ctime(int(time.time() * 1000))
    return [f"{now}|validateJob: {r}" for r in [*reasons, f"Job rejected: {len(reasons)} errors"]]


def failure(message: str | list[str], status_id: int = FAILED) -> bytes:
    return encode(Answer(status_id=status_id, status_msg=message))


def success(message: str) -> bytes:
    return encode(Answer(status_msg=message))
