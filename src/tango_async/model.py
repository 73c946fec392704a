"""What the queue holds of jobs, callbacks, dispatchers and orders, as plain values. No I/O; machines are machine.py's.

Times are Unix milliseconds by the queue server's clock (`_ms`) or seconds (`_s`); sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from .machine import CloudChoice, Limits, MachineSpec

RECORD_VERSION = 2
"""Version of the msgpack records in the queue; readers accept this one, older ones, and the next one.

What a record of an older release lacks has its default, and what one of the next release has beyond is ignored.
"""


class JobState(StrEnum):
    """Where a job is. Exactly one at any time (docs/states.md draws the arrows)."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    DEAD = "dead"


class Verdict(StrEnum):
    """How a job ended. `text` in feedback.py turns it into Tango's sentence."""

    SUCCESS = "success"
    TIMEOUT = "timeout"
    COPY_IN_FAILED = "copy_in_failed"
    OS_ERROR = "os_error"
    COPY_OUT_FAILED = "copy_out_failed"
    OUTPUT_TOO_LONG = "output_too_long"
    CANCELLED = "cancelled"
    GAVE_UP = "gave_up"


LABEL = r"[a-z0-9][a-z0-9._-]{0,31}"
"""A label as a regular expression."""

GPU = "gpu"
"""The label of hosts whose jobs can have a GPU: offered by their VMMS, not by their settings."""


def class_name(image: str, *, quiet: bool = False, labels: Iterable[str] = ()) -> str:
    """`IMAGE`, `IMAGE|quiet`, `IMAGE|+avx512+gpu` or `IMAGE|quiet+gpu`. No image's name holds a bar or a plus."""
    more = "quiet" * quiet + "".join(f"+{label}" for label in sorted(labels))
    return f"{image}|{more}" if more else image


def parts_of(class_name: str) -> tuple[str, bool, frozenset[str]]:
    """The image, whether it is quiet, and the labels of a requirement class."""
    image, _, more = class_name.partition("|")
    quiet, *labels = more.split("+")
    return image, quiet == "quiet", frozenset(labels)


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a job: the upload it came from and the name it gets on the machine."""

    local: str
    dest: str
    size: int
    md5: str


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was accepted. Never changes afterwards."""

    v: int = RECORD_VERSION
    name: str
    lab: str
    """The courselab's directory in the store, `<key>-<courselab>`; never shown with its key."""
    courselab: str
    image: str
    output_name: str
    pin: str
    """The store's handle on the inputs as they stood when the job was accepted."""
    files: tuple[PinnedFile, ...]
    limits: Limits
    network: bool = True
    submitter: str = ""
    """Whose flood falls behind the others of its course: addJob's `limiting_key`, or the address in the job's name."""
    priority: int = 0
    """Among the jobs of its course, -100 to 100; more is earlier."""
    callback_url: str | None = None
    quiet: bool = False
    """It runs on processor cores that nothing else uses meanwhile."""
    cloud: CloudChoice | None = None
    requires: tuple[str, ...] = ()
    """Labels, sorted, that its host has to have."""
    notes: tuple[str, ...] = ()
    """What the trace says of how the request was read, such as a timeout cut to the most allowed."""

    @property
    def class_name(self) -> str:
        """The requirement class: what a dispatcher must offer to run the job."""
        return class_name(self.image, quiet=self.quiet, labels=self.requires)

    @property
    def slots(self) -> int:
        """A job takes as many slots of its dispatcher as it has cores, rounded up."""
        return max(1, math.ceil(self.limits.cores))

    def machine(self) -> MachineSpec:
        """The machine this job needs."""
        return MachineSpec(
            image=self.image,
            network=self.network,
            cores=self.limits.cores,
            memory_bytes=self.limits.memory_bytes,
            processes=self.limits.processes,
            disk_bytes=self.limits.disk_bytes,
            cloud=self.cloud,
            gpu=GPU in self.requires,
        )


class TraceLine(msgspec.Struct, frozen=True, array_like=True):
    """One dated event of a job's life."""

    at_ms: int
    text: str


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the queue knows it now."""

    id: int
    spec: JobSpec
    state: JobState
    added_ms: int
    attempts: int = 0
    retries: int = 0
    seq: int = 0
    machine: str = ""
    vmms: str = ""
    """Of the dispatcher that started it last."""
    started_ms: int = 0
    ended_ms: int = 0
    verdict: Verdict | None = None
    output_ref: str = ""
    """The store's handle on the feedback; empty when the job died with no dispatcher."""
    note: str = ""
    """The short feedback of a job that died with no dispatcher."""
    trace: tuple[TraceLine, ...] = ()


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The right to run a job, valid while `seq` is the job's and the lease is extended."""

    id: int
    seq: int
    attempt: int
    """Counts from 1, for people; `seq` is what is checked."""
    added_ms: int
    spec: JobSpec


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """When a queued job will start, as far as can be told."""

    position: int
    """Jobs that will start before it, under fair share."""
    eta_s: float | None
    """Until it starts; None if no living dispatcher offers what it needs."""
    error_s: float | None
    """By how much such forecasts were wrong in its course lately, on average; None if none was tried."""


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A callback to deliver now."""

    id: int
    url: str
    tries: int
    """Deliveries tried before."""
    attempt: int
    verdict: Verdict
    output_ref: str
    note: str
    since_end_s: float
    output_name: str


class CallbackState(StrEnum):
    """How it stands with a callback."""

    NOT_ENDED = "not ended"
    """The job still waits or runs."""
    PENDING = "pending"
    DELIVERED = "delivered"
    UNSENT = "unsent"
    """Given up after the horizon."""


class CallbackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A callback as the outbox knows it now."""

    id: int
    spec: JobSpec
    url: str
    state: CallbackState
    due_ms: int
    """When it is tried next; 0 unless it is pending."""
    tries: int
    log: tuple[TraceLine, ...]
    """What came of each try: a status, or why there was none."""


MAX_POOL = 1000
"""Machines of one image that can be ordered of a dispatcher."""

EVERY_IMAGE = "*"
"""No image's name: stands for all that have no order of their own."""


class PoolOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants to have ready on every host that has the image."""

    size: int
    """Machines that wait; 0 is none, also where the settings say otherwise."""
    max: int = 0
    """Of EVERY_IMAGE: machines of one image at a time."""
    vmms: str | None = None
    """None: any."""
    cores: float | None = None
    memory_mb: int | None = None
    network: bool | None = None
    """Like the two above: None is as a job has that asks for nothing special."""


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """The machines a dispatcher has for one image: numbers that Tango's clients call ids."""

    total: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    problem: str = ""
    """Why none could be made lately, as the engine says; may name things of the host."""


PULL, PUSH = "pull", "push"
"""Orders of an image; any other is the store's handle on an archive that is to be loaded."""


class HostOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants of a dispatcher. Stays in force over its restarts."""

    paused: bool = False
    slots: int | None = None
    """None: as many as its settings say."""
    resumed: int = 0
    """How often it was told to resume."""


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """One of several engines that a dispatcher has, as last seen."""

    name: str
    slots: int
    busy: int
    """Slots that jobs have; those on an engine that is out of reach are counted."""
    healthy: bool
    problem: str = ""
    images: dict[str, str] = msgspec.field(default_factory=dict)
    """Name → id."""


class DispatcherRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a dispatcher publishes of itself at every beat; kept after it dies."""

    v: int = RECORD_VERSION
    install: str
    """Names the host's installation; stays the same over restarts."""
    instance: str
    """Names this process; new at every start."""
    host: str
    vmms: str
    version: str
    images: tuple[str, ...]
    loads_images: bool = False
    slots: int
    """As they are now, by its settings or by an operator's order."""
    busy: int
    quiet_cores: int = 0
    """Cores that it keeps for quiet jobs."""
    labels: tuple[str, ...] = ()
    """What its host has, for jobs that require it; sorted."""
    paused: bool = False
    """By an operator's order: it claims nothing and finishes what it has."""
    started_ms: int = 0
    age_s: float = 0.0
    """Since its last beat, by the queue server's clock; set by whoever reads it."""
    pools: dict[str, PoolState] = msgspec.field(default_factory=dict)
    healthy: bool = True
    shut: dict[str, str] = msgspec.field(default_factory=dict)
    """Image, or EVERY_IMAGE, of which it takes no jobs since too many failed in a row, and why."""
    problem: str = ""
    engines: tuple[EngineState, ...] = ()
    """Where it has several."""
    ended: int = 0
    """Attempts that have ended since this process started, however they did."""
    lag_s: float = 0.0
    """How late its event loop was at worst in the last minute."""
    rss_bytes: int = 0
