"""The nouns of machines, as plain values: what one is, what is fixed of it, and what a run on it may use and did.

No I/O, no other module of ours. Times are seconds (`_s`), sizes bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use. Fixed when the job is added."""

    timeout_s: int
    output_bytes: int
    """Feedback kept; longer output keeps its first and last half."""
    output_stop_bytes: int
    """Output that ends the job."""
    file_bytes: int
    """The largest single file the job may write."""
    processes: int
    disk_bytes: int
    """Size of the writable home."""
    memory_bytes: int
    cores: float


class CloudChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks of a cloud; "" is as the settings say. Nothing in it is secret."""

    image: str = ""
    """The cloud's own id of an image, such as an AMI's."""
    machine_type: str = ""
    security_group: str = ""
    account: str = ""
    """Stands for the job's own credentials, which the queue keeps apart."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A job's own account at a cloud. Never logged, shown or stored with the job."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return "Credentials(…)"

    @property
    def account(self) -> str:
        """What stands for them in public."""
        return hashlib.sha256(f"{self.key_id}\n{self.secret}".encode()).hexdigest()[:16]


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed when a machine is created, and so what tells two pools apart."""

    image: str
    network: bool
    cores: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    cloud: CloudChoice | None = None
    cpuset: str = ""
    """The processors that it may use, as Linux lists them (`0,2-3`); empty: any."""
    gpu: bool = False
    """It has the host's GPUs."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file on its way into a machine. `chunks` yields exactly `size` bytes."""

    name: str
    size: int
    chunks: Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Machine:
    """A sandbox, container or VM that a VMMS made.

    `nonce` is the secret that its bootstrap expects before the files.
    """

    id: str
    spec: MachineSpec
    nonce: str
    owner: str = ""
    """The dispatcher instance that made it."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a machine's run ended, as the engine or its exit record tells.

    `code` follows the shell: 128 + n for signal n. A run that the bootstrap's own timer ended has
    `timed_out` set, also when no dispatcher was there to see it.
    """

    code: int
    timed_out: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What a machine has used of the processor since it was made."""

    cpu_s: float
    throttled_s: float
    """Held back, since it had used its share."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """When another machine is made, where one serves job after job and is paid for."""

    jobs_each: int
    """So many jobs that wait are reason for one more."""
    after_s: float
    """… when they have waited so long."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The machines of an image where they serve job after job."""

    machines: int
    """All that are there for a job, with one or without, and those that are being made."""
    fresh: int
    """Those of them that are being made, or serve for less than `Scaling.after_s`."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a VMMS can do beyond running a job: asked, never assumed."""

    adopt: bool = False
    """Machines outlive the dispatcher and can be followed by the next one."""
    prestart: bool = False
    """Machines can be made before their job is known."""
    load_images: bool = False
    image_ids: bool = False
    """It can tell whether a name means another image than before."""
    network: bool = False
    """Jobs can be given a network."""
    clouds: bool = False
    """Jobs may choose of a cloud, and bring their own account there."""
    overtime_s: float = 2.0
    """How long after its deadline a machine may take to end by its own timer and to tell of it."""
    cpusets: bool = False
    """Machines keep to the processors of their `cpuset`, and `usage` tells what they used."""
    gpu: bool = False
    """Jobs can be given the host's GPUs."""
    idle_bytes: int = 16 * 1024**2
    """Memory of the host that a prestarted machine takes until it has a job."""
    scaling: Scaling | None = None
    """Machines serve job after job, and how many there are follows the jobs that wait."""
