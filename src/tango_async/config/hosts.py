"""Settings of a grading host: its dispatcher, its prepared machines, and what a job may use."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from .groups import HOST_MEMORY_BYTES, Bytes, CoreList, Cores, Count, Group, Label, Machines, Room, Seconds


class Dispatcher(Group, frozen=True):
    vmms: str = "auto"
    """localSandbox, localDocker, distDocker, ec2SSH, tashiSSH, package.module:Class, or auto: Docker if an engine
    answers and has an image, else the sandbox; a service that had Docker there before waits for it. `TANGO_VMMS`"""
    slots: Count = max(1, os.cpu_count() or 1)
    """Jobs of one core that run at a time on this host; `tango host slots` changes it while it runs. With distDocker
    its hosts' slots count instead. `TANGO_SLOTS`"""
    quiet_cores: CoreList = ""
    """Processor cores of this host that only quiet jobs use, such as `2-3`; all else keeps to the others. Empty: it
    takes no quiet jobs."""
    labels: tuple[Label, ...] = ()
    """What this host has, for jobs that require it, such as `avx512`: they go only to hosts with all that they require.
    `gpu` is added where the VMMS can give one (`docker.gpus`), and taken out where it cannot."""
    lease_s: Seconds = 15.0
    """A claimed job that nobody extends for so long is taken from its dispatcher."""
    adopt_grace_s: Seconds = 120.0
    """A running job whose dispatcher is gone waits so long for one that finds its machine again."""
    grace_s: Seconds = 30.0
    """After SIGTERM running jobs may finish for so long; then they are handed over or given back."""
    job_retries: Annotated[int, Meta(ge=0, le=100)] = 2
    """How often a job is tried again after faults of the infrastructure."""
    pause_after_faults: Annotated[int, Meta(ge=0, le=1000)] = 5
    """When so many jobs in a row could not be started, the host takes no more, or none of the one image that all of
    them had; `tango host resume` ends that. 0: never."""
    try_again_s: Seconds = 30.0
    """… and after so long it tries one; if that fails as well, the next after twice the time, up to 10 min."""
    machine_wait_s: Seconds = 60.0
    """Longest wait for a machine to take files."""
    copy_in_s: Seconds = 120.0
    """Longest time for sending the files."""
    finish_s: Seconds = 30.0
    """Longest time for reading the rest of the output and storing the feedback."""
    upkeep_s: Seconds = 5.0
    """Period of the upkeep: expired leases, strays, history."""
    file_upkeep_s: Seconds = 60.0
    """Period of the file store's upkeep."""
    stray_age_s: Seconds = 3600.0
    """Files that nobody owns are removed when they are so old; longer than any addJob takes."""
    state_dir: Path | None = None
    """Where machines of this host are recorded; unset: `dispatcher` in the data directory. Dispatchers share it if they
    share a queue and an engine, and no others do: what their own queue does not know, they remove."""


class ImageLimits(Group, frozen=True):
    """A table of `[[limits.image]]`: other limits for some images; what it leaves out is as for all."""

    name: Annotated[str, Meta(min_length=1)]
    timeout_s: Count | None = None
    max_timeout_s: Count | None = None
    output_bytes: Bytes | None = None
    max_output_bytes: Bytes | None = None
    file_bytes: Bytes | None = None
    max_file_bytes: Bytes | None = None
    processes: Count | None = None
    max_processes: Count | None = None
    memory_bytes: Bytes | None = None
    max_memory_bytes: Bytes | None = None
    cores: Cores | None = None
    max_cores: Cores | None = None
    disk_bytes: Bytes | None = None
    max_disk_bytes: Bytes | None = None


SIZES = ("timeout_s", "output_bytes", "file_bytes", "processes", "memory_bytes", "cores", "disk_bytes")
"""Settings of a job's limits that addJob can change, up to those with `max_` before them."""


class ImagePool(Group, frozen=True):
    """A table of `[[pools.image]]`: the pools of the images that a pattern fits; what it leaves out is as for all."""

    pattern: Annotated[str, Meta(min_length=1)]
    min: Machines = 0
    max: Machines | None = None
    demand: Machines | None = None
    idle_s: Seconds | None = None
    cores: Annotated[float, Meta(gt=0, le=4096)] | None = None
    memory_bytes: Bytes | None = None
    network: bool | None = None


class Pools(Group, frozen=True):
    """Machines that are made before their job is there, and wait for it. `prealloc` and `scale` order them as well."""

    demand: Machines = 0
    """Machines of one image and size that are kept ready because jobs came: as many as were in use at once within
    `idle_s`, and at most these. 0: none, since whoever is told nothing should find no memory in use for it."""
    idle_s: Seconds = 300.0
    """How long demand is remembered; then its machines go."""
    max: Machines = 0
    """Most machines of one image at a time, those in use and in the making included: further jobs of it wait, and
    others pass them. 0: as many as there are slots."""
    max_idle: Annotated[int, Meta(ge=0, le=10_000)] = 100
    """Most machines that wait on this host, of all images. When more are wanted, those of the image that was used
    longest ago go first. With Docker each one takes three open files of the dispatcher."""
    idle_memory_bytes: Room = HOST_MEMORY_BYTES // 8
    """Most memory of the host that they take all together, by what one takes until it has a job (some 16 MiB)."""
    spare_memory_bytes: Room = HOST_MEMORY_BYTES // 16
    """When the host has less memory available than this, machines that wait are removed, and none is made."""
    image: tuple[ImagePool, ...] = ()
    """Tables `[[pools.image]]`: the first one whose `pattern` (`*` and `?`) fits an image's name holds for it. `cores`
    and `memory_bytes` are those of its jobs that ask for nothing special; `min` such machines are always ready, without
    a network if `network` is false; `max`, `demand` and `idle_s` are as above."""


class Limits(Group, frozen=True):
    """What one job may use; a job may ask for less, and for more up to the most."""

    timeout_s: Count = 60
    """A job's time when addJob says 0, null or nothing."""
    max_timeout_s: Count = 3600
    """The longest that addJob may ask for; more is cut to it, and the trace says so."""
    output_bytes: Bytes = 1_024_000
    """Feedback kept when addJob says 0, null or nothing; Tango's default."""
    max_output_bytes: Bytes = 16 * 1024**2
    """The most feedback that addJob may ask for; more is cut to it, and the trace says so."""
    output_stop_bytes: Annotated[int, Meta(ge=1, le=90 * 10**6)] = 64 * 1024**2
    """Output that ends the job. Less than what an engine's log keeps."""
    file_bytes: Bytes = 256 * 1024**2
    """The largest file a job may write."""
    max_file_bytes: Bytes = 1024**3
    """The largest that addJob may ask for, as `limits.file_mb`; more is cut to it, as with the others below."""
    processes: Count = 128
    """Processes and threads of one job."""
    max_processes: Count = 1024
    """The most that addJob may ask for, as `limits.processes`."""
    memory_bytes: Bytes = 1024**3
    """Memory of one job."""
    max_memory_bytes: Bytes = 4 * 1024**3
    """The most that addJob may ask for, as `vm.memory`. A host needs so much for each of its slots if all jobs do."""
    cores: Cores = 1.0
    """Processor cores of one job. A job takes a slot of its dispatcher for each core, and for a part of one."""
    max_cores: Cores = 4.0
    """The most that addJob may ask for, as `vm.cores`. A job of more cores than any host has slots runs alone."""
    disk_bytes: Bytes = 512 * 1024**2
    """Size of a job's writable home."""
    max_disk_bytes: Bytes = 2 * 1024**3
    """The largest that addJob may ask for, as `limits.disk_mb`. What a job writes there is part of its memory."""
    image: tuple[ImageLimits, ...] = ()
    """Tables `[[limits.image]]` with a `name` (`*` and `?` stand for anything) and some of the settings above, except
    `output_stop_bytes`: the first one whose name fits an image holds for it. A default of all that is above the most
    of such a table is lowered to it."""
    live_output_bytes: Bytes = 256 * 1024
    """How much of a running job's output can be seen before it ends."""

    def of(self, image: str) -> Limits:
        """The limits of an image, by the first table that fits; `image` in it is empty."""
        own = next((table for table in self.image if fnmatchcase(image, table.name)), None)
        if own is None:
            return self
        said = {name: value for name in own.__struct_fields__[1:] if (value := getattr(own, name)) is not None}
        changed: Limits = msgspec.structs.replace(self, image=(), **said)
        lowered = {name: min(getattr(changed, name), getattr(changed, f"max_{name}")) for name in SIZES}
        return msgspec.structs.replace(changed, **lowered)
