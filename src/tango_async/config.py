"""Every setting, from `tango.toml` and TANGO_* variables, frozen and checked at start.

The environment wins over the file. docs/settings.md is generated from the docstrings here, so a
setting without one does not pass the tests.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .errors import ConfigError
from .model import LABEL, MAX_POOL

Count = Annotated[int, Meta(ge=1, le=100_000)]
Bytes = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Days = Annotated[float, Meta(ge=0)]
Cores = Annotated[float, Meta(gt=0, le=4096)]
CoreList = Annotated[str, Meta(pattern=r"^([0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*)?$")]
Room = Annotated[int, Meta(ge=0)]
Label = Annotated[str, Meta(pattern=f"^{LABEL}$")]
LEAST_PRIORITY, MOST_PRIORITY = -100, 100
Priority = Annotated[int, Meta(ge=LEAST_PRIORITY, le=MOST_PRIORITY)]
Machines = Annotated[int, Meta(ge=0, le=MAX_POOL)]

HOST_MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of `tango.toml`."""


class Http(Group, frozen=True):
    host: str = "0.0.0.0"  # noqa: S104 - a service; a proxy or firewall stands before it
    """Address to listen on. `TANGO_HOST`"""
    port: Port = 3000
    """Port to listen on; 0 takes a free one and logs it. `TANGO_PORT`"""
    keys: tuple[str, ...] = ()
    """API keys, any of which Autolab may send; each may do everything. A server without one, here or in `keys_file`,
    refuses to start. `TANGO_KEYS`, comma-separated"""
    keys_file: Path | None = None
    """Further keys, each with what it may do (docs/keys.md); read again whenever it changes. `TANGO_KEYS_FILE`"""
    max_upload_bytes: Bytes = 8 * 1024**3
    """Largest upload of one file."""
    max_image_bytes: Bytes = 64 * 1024**3
    """Largest image archive sent to build."""
    max_json_bytes: Bytes = 1024**2
    """Largest JSON body."""
    body_timeout_s: Seconds = 60.0
    """Longest wait for the next bytes of a body."""
    min_body_bytes_s: int = 1024
    """Slowest body, on average over `body_timeout_s`, that is read on; 0 takes any."""
    build_wait_s: Seconds = 20.0
    """How long build waits for a dispatcher's verdict; Autolab gives up after 30 s."""
    list_limit: Count = 1000
    """Most jobs in one answer of /jobs/."""


class Queue(Group, frozen=True):
    url: str = ""
    """Redis, as `redis://HOST:PORT/DATABASE`, `rediss://` (TLS) or `unix://PATH`, or behind Sentinel as
    `redis+sentinel://HOST:PORT,HOST,…/MASTER/DATABASE` (`rediss+sentinel://`: TLS to all of them). A user and a
    password may stand before the host. Unset: `tango up` runs an embedded one. `TANGO_REDIS_URL`"""
    username: str = ""
    """The ACL user; unset: the one of the URL, or Redis's default user."""
    password: str = ""
    """Its password; unset: the one of the URL."""
    ca: Path | None = None
    """Certificates that sign the server's, for TLS; unset: the system's."""
    cert: Path | None = None
    """Our own certificate, if the server asks for one."""
    cert_key: Path | None = None
    """Its private key, if that is not in the same file."""
    sentinel_username: str = ""
    """The ACL user at the Sentinels, which have users of their own."""
    sentinel_password: str = ""
    """Its password."""
    prefix: str = "tango:"
    """Begins every key."""
    history_limit: Count = 10_000
    """Dead jobs that are remembered, with their outputs."""
    history_days: Seconds = 90.0
    """How long they are remembered."""
    same_job_s: Seconds = 150.0
    """An addJob repeated within this time is the same job: Autolab repeats a slow one for about 126 s."""
    max_memory_share: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    """Share of Redis's maxmemory above which addJob is refused, so that running jobs can still end."""


class Store(Group, frozen=True):
    data_dir: Path = Path("/var/lib/tango")
    """Everything that must survive a restart. `TANGO_DATA_DIR`"""
    courselabs: Path | None = None
    """The uploads, in Tango's layout; unset: `courselabs` in the data directory. `TANGO_COURSELABS`"""
    url: str = ""
    """Keeps uploads, inputs, outputs and images in a bucket instead, as s3://bucket or s3://bucket/prefix, for
    servers and grading hosts that share no disk. `TANGO_STORE_URL`"""

    @property
    def labs(self) -> Path:
        return self.courselabs or self.data_dir / "courselabs"

    @property
    def bucket(self) -> tuple[str, str]:
        """The bucket of `url`, and what begins every key in it: empty, or ends with a slash."""
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        return bucket, prefix.strip("/") + "/" if prefix.strip("/") else ""


class Encryption(StrEnum):
    """How the server is to encrypt what it stores."""

    DEFAULT = ""
    AES256 = "AES256"
    KMS = "aws:kms"


class S3(Group, frozen=True):
    endpoint: str = ""
    """The server, as https://host:port; unset: Amazon's. `TANGO_S3_ENDPOINT`"""
    region: str = ""
    """Unset: what `AWS_DEFAULT_REGION` says, else us-east-1."""
    path_style: bool | None = None
    """Whether the bucket is the first part of the path (true) or of the host's name (false); unset: of the path if
    an endpoint is set."""
    access_key: str = ""
    """Unset: the usual places, which are `AWS_ACCESS_KEY_ID`, ~/.aws and the role of the instance or container."""
    secret_key: str = ""
    """Belongs to `access_key`."""
    session_token: str = ""
    """Belongs to temporary credentials."""
    encryption: Encryption = Encryption.DEFAULT
    """AES256 or aws:kms; unset: the bucket's own default."""
    kms_key: str = ""
    """The key's id or ARN for aws:kms; unset: the account's default key."""
    part_bytes: Annotated[int, Meta(ge=5 * 1024**2, le=64 * 1024**2)] = 8 * 1024**2
    """Large bodies are sent in parts of this size, at most 10,000. At its peak an upload takes about six times as
    much memory."""
    timeout_s: Seconds = 20.0
    """Longest wait for an answer; what fails is tried four times."""


class CourseRetention(Group, frozen=True):
    """A table of `[[retention.course]]`: other limits for some courses; what it leaves out is as for all."""

    pattern: Annotated[str, Meta(min_length=1)]
    upload_days: Days | None = None
    upload_bytes: Room | None = None
    output_days: Days | None = None
    output_bytes: Room | None = None


class Retention(Group, frozen=True):
    upload_days: Days = 0.0
    """Uploads that were neither sent nor used by a job for so long are removed; 0 keeps them."""
    upload_bytes: Room = 0
    """Most bytes of one course's uploads; above, the longest unused are removed. 0: any."""
    output_days: Days = 0.0
    """Dead jobs are forgotten after so long, with their outputs; 0: only by `queue.history_days`."""
    output_bytes: Room = 0
    """Most bytes of one course's outputs; above, the oldest jobs are forgotten. 0: any."""
    course: tuple[CourseRetention, ...] = ()
    """Tables `[[retention.course]]` with a `pattern` and some of the settings above: the first one whose pattern
    (`*` and `?`) fits a course holds for it. A course is named as its directories are, up to their last `-`:
    `KEY-15213-f24-lab1` is of `KEY-15213-f24`, and so `*-15213-*` fits."""
    period_s: Seconds = 3600.0
    """How often that is looked at."""


class Resubmission(StrEnum):
    """What becomes of a live job when its submitter sends another one to the same courselab."""

    KEEP = "keep"
    OUTPUT = "output"
    """It is cancelled if both have the same submitter and output file."""
    SUBMITTER = "submitter"
    """It is cancelled if both have the same submitter."""


class CourseShare(Group, frozen=True):
    """A table of `[[share.course]]`."""

    pattern: Annotated[str, Meta(min_length=1)]
    weight: Annotated[float, Meta(ge=0.001, le=1000)] = 1.0
    max_running: Room = 0
    max_running_each: Room = 0
    resubmission: Resubmission = Resubmission.KEEP
    lane: str = ""


class Share(Group, frozen=True):
    course: tuple[CourseShare, ...] = ()
    """Tables `[[share.course]]`: the first one whose `pattern` (`*` and `?`, as in `retention.course`) fits a course
    holds for it. `weight` is its share beside the others' (1); `max_running` and `max_running_each` bound the jobs
    that run at a time, of the course and of one submitter (0: any); `resubmission` says what becomes of a job that
    waits or runs when its submitter sends another one to the courselab: `keep`; `output`: it is cancelled if both have
    the same output file; or `submitter`: it is cancelled; `lane` names the share if several are to be one."""
    regrades: tuple[str, ...] = ("*regrade*",)
    """Patterns of job names whose priority is `regrade_priority`, if addJob asks for none."""
    regrade_priority: Priority = -10
    """Priority of regrades; other jobs have 0. Of one course's jobs those with the highest come first."""


class Dispatcher(Group, frozen=True):
    vmms: str = "auto"
    """localSandbox, localDocker, distDocker, ec2SSH, tashiSSH, package.module:Class, or auto: Docker if an engine
    answers and has an image, else the sandbox. `TANGO_VMMS`"""
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
    """Where machines of this host are recorded; unset: `dispatcher` in the data directory."""


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
    """Most machines of one image at a time, those in use included: further jobs of it wait, and others pass them.
    0: as many as there are slots."""
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


class Sandbox(Group, frozen=True):
    images: dict[str, str] = msgspec.field(default_factory=lambda: {"autograding_image": "host"})
    """Image name = root directory, or "host" for the host's own /usr. Other names are unknown."""
    bwrap: str = "bwrap"
    """Bubblewrap's program."""
    uid: Annotated[int, Meta(ge=1)] = 64_123
    """The first of 960 uids that jobs have on the host when the dispatcher runs as root, each its own; never 0."""
    cgroup: bool = True
    """Limit memory and processes by cgroup where one is writable."""


class DockerHost(Group, frozen=True):
    """A table of `[[docker.hosts]]`."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,29}$")]
    url: Annotated[str, Meta(pattern=r"^(unix|tcp|https|ssh)://.+$")]
    slots: Count | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    known_hosts: Path | None = None


class DockerRegistry(Group, frozen=True):
    """A table of `[[docker.registries]]`."""

    address: Annotated[str, Meta(min_length=1)]
    user: Annotated[str, Meta(min_length=1)]
    password_file: Path


class Docker(Group, frozen=True):
    host: str = ""
    """The engine, as unix:// or tcp://; unset: `DOCKER_HOST`, then /var/run/docker.sock."""
    hosts: tuple[DockerHost, ...] = ()
    """Tables `[[docker.hosts]]`, the engines of distDocker: a `name`, which stays; a `url`, as unix://PATH,
    tcp://HOST:PORT or ssh://USER@HOST:PORT/PATH (port and path of the engine's socket may be left out); `slots`, which
    are the dispatcher's together (unset: the host's cores). With TLS `ca`, `cert` and `key` are files; with ssh `key`
    is the private key (unset: those of the account), and `known_hosts` the file that names the host's key."""
    away_s: Seconds = 90.0
    """An engine that is out of reach for longer has lost its jobs: they run elsewhere. Till then it is waited for."""
    registries: tuple[DockerRegistry, ...] = ()
    """Tables `[[docker.registries]]`, for `tango image pull` and `push`: `address`, as image names begin, the `user`,
    and the `password_file`."""
    network: str = "bridge"
    """Network of jobs whose network is not disabled."""
    runtime: str = ""
    """Container runtime, such as runsc; unset: the engine's default."""
    gpus: Annotated[str, Meta(pattern=r"^(all|[A-Za-z0-9_:-]+(,[A-Za-z0-9_:-]+)*)?$")] = ""
    """GPUs of this host that jobs which require `gpu` get, all of them each: `all`, or the engine's device ids such as
    `0,1`; unset: none, and no such job is taken. `max` of a table of `pools.image` bounds how many share them."""
    gpu_runtime: str = ""
    """Runtime of the containers of such jobs, such as nvidia; unset: `runtime`."""
    output: Literal["auto", "host", "engine"] = "auto"
    """How a job's output comes back. `host`: through a pipe below `dispatcher.state_dir` that the container is shown;
    no byte is lost when the engine dies. `engine`: through the engine, whose death may cost a running job a piece of
    its output. auto: host for unix://, else engine. Set engine where containers cannot open a file of the dispatcher's:
    it runs in a container itself, without `state_dir` mounted at the same path; or the engine maps users, or is in a
    virtual machine; or `runtime` is runsc."""


class Tashi(Group, frozen=True):
    host: str = ""
    """Host of Tashi's cluster manager: `clusterManagerHost` of Tashi's clients."""
    port: Port = 9882
    """Its port: `clusterManagerPort`."""
    images: dict[str, str] = {}
    """Image name = its disk in the cluster's image store, such as `autograding_image.img`."""
    image_dir: Path | None = None
    """The image store, where this host sees it: each `NAME.img` in there is an image, too."""
    user: str = "autolab"
    """Who logs in: root, a user who may `sudo` without a password, or one on an image with Tango's autodriver."""
    private_key: Path | None = None
    """A file with the key that lets us into VMs; the images know its public part."""
    host_keys: tuple[str, ...] = ()
    """Public host keys of the images, as `ssh-ed25519 AAAA…`. A VM that has none of them is not trusted."""
    domain: str = "vmnet"
    """A VM is `INSTANCE.domain`, unless the cluster manager tells its address."""
    network: int = 1
    """Number of the cluster's network that VMs are put on."""
    user_id: int = 42
    """Number of the cluster's user whose VMs they are."""
    system_bytes: Room = 256 * 1024**2
    """Memory of a VM beyond that of its job. Clusters grant 8 GiB at most, and 8 cores."""
    boot_s: Seconds = 50.0
    """Longest wait for a new VM until it lets the dispatcher in. `dispatcher.machine_wait_s` must be longer."""
    lost_s: Seconds = 120.0
    """A VM that runs and cannot be reached for so long counts as lost."""


MOST_REDIRECTS = 5
"""That a callback's delivery follows."""


class HostKeys(StrEnum):
    """How the host key of a new VM comes to be known."""

    USER_DATA = "user-data"
    CONSOLE = "console"


class Ec2(Group, frozen=True):
    region: str = ""
    """The AWS region; unset: as AWS's own tools find it."""
    endpoint: str = ""
    """Another address of the EC2 API; unset: AWS's of the region."""
    access_key_id: str = ""
    """The account's access key; unset: as AWS's own tools find one, such as the grading host's instance role."""
    access_key: str = ""
    """Its secret part."""
    images: dict[str, str] = {}
    """Image name = AMI id. Besides, each of the account's own AMIs is known by its tag `Name`."""
    types: tuple[str, ...] = ("t3.small", "t3.medium", "t3.large", "t3.xlarge", "t3.2xlarge")
    """Instance types, the preferred one first: a job gets the first that has its cores and its memory, and those
    after it when there is no room for that one."""
    spot: bool = False
    """Spot instances first, and on demand when there is none. A job whose instance is taken back runs again."""
    security_groups: tuple[str, ...] = ()
    """Ids (sg-…) of security groups; they must let port 22 in from the dispatcher. Unset: the VPC's default one."""
    subnets: tuple[str, ...] = ()
    """Ids (subnet-…) of subnets, tried in turn when one has no room; unset: a default one."""
    public_address: bool = False
    """Reach instances by their public address; else by the private one, from within the VPC."""
    user: str = "ubuntu"
    """Who logs in: root, a user who may `sudo` without a password, or one on an AMI with Tango's autodriver."""
    key_name: str = ""
    """A key pair of the account, whose private part is `private_key`. Unset: the dispatcher makes one, and removes it
    when it stops."""
    private_key: Path | None = None
    """A file with the private key of `key_name`."""
    host_keys: HostKeys = HostKeys.USER_DATA
    """`user-data`: cloud-init installs a key that was made for the instance. `console`: the one that the instance
    writes to its console is awaited, which takes minutes, for AMIs without cloud-init."""
    boot_s: Seconds = 240.0
    """Longest wait for a new instance until it lets the dispatcher in. `dispatcher.machine_wait_s` must be longer."""
    lost_s: Seconds = 120.0
    """An instance that runs and cannot be reached for so long counts as lost."""
    reuse: bool = False
    """Instances serve one job after the other, cleaned in between; else each serves one and is terminated."""
    idle_s: Seconds = 300.0
    """How long an instance without a job is kept for the next one, with `reuse`."""
    max_life_minutes: Annotated[int, Meta(ge=5, le=10_080)] = 360
    """An instance ends itself so long after it was made ready for a job, whatever becomes of its dispatcher; must be
    longer than any job."""
    job_accounts: bool = True
    """Jobs may bring an account of their own: addJob's `accessKeyId` and `accessKey`."""
    keep_failed: bool = False
    """An instance whose job was lost or never started is kept for inspection until `max_life_minutes`, at your cost."""
    tags: dict[str, str] = {}
    """Further tags of instances and their volumes."""


class Callbacks(Group, frozen=True):
    min_age_s: Annotated[float, Meta(ge=0)] = 2.0
    """Earliest delivery after the answer to addJob: Autolab stores the job's id only then."""
    unanswered_s: Annotated[float, Meta(ge=0)] = 130.0
    """… and when that answer never reached the client, which then repeats its addJob."""
    horizon_s: Seconds = 86_400.0
    """How long a delivery is tried again."""
    timeout_s: Seconds = 30.0
    """Longest wait for the receiver."""
    allow: tuple[str, ...] = ()
    """Hosts that callbacks may go to, as name, *.domain or name:port; empty: any, with a warning at start."""
    secret: str = ""
    """If set, X-Tango-Signature carries the HMAC-SHA256 of the body under it. `TANGO_CALLBACK_SECRET`"""
    concurrency: Count = 16
    """Deliveries at a time."""

    @property
    def hold_s(self) -> float:
        """No delivery is under way for longer, with all its redirects."""
        return self.timeout_s * (MOST_REDIRECTS + 2)


class Settings(Group, frozen=True):
    """All settings; one attribute a table."""

    http: Http = Http()
    queue: Queue = Queue()
    store: Store = Store()
    s3: S3 = S3()
    retention: Retention = Retention()
    share: Share = Share()
    dispatcher: Dispatcher = Dispatcher()
    pools: Pools = Pools()
    limits: Limits = Limits()
    sandbox: Sandbox = Sandbox()
    docker: Docker = Docker()
    ec2: Ec2 = Ec2()
    tashi: Tashi = Tashi()
    callbacks: Callbacks = Callbacks()

    @property
    def state_dir(self) -> Path:
        return self.dispatcher.state_dir or self.store.data_dir / "dispatcher"


VARIABLES = {
    "TANGO_HOST": "http.host",
    "TANGO_PORT": "http.port",
    "TANGO_KEYS": "http.keys",
    "TANGO_KEYS_FILE": "http.keys_file",
    "TANGO_DATA_DIR": "store.data_dir",
    "TANGO_COURSELABS": "store.courselabs",
    "TANGO_STORE_URL": "store.url",
    "TANGO_S3_ENDPOINT": "s3.endpoint",
    "TANGO_REDIS_URL": "queue.url",
    "TANGO_VMMS": "dispatcher.vmms",
    "TANGO_SLOTS": "dispatcher.slots",
    "TANGO_CALLBACK_SECRET": "callbacks.secret",
    "DOCKER_HOST": "docker.host",
}
"""Environment variable → setting. TANGO_<TABLE>_<SETTING> sets any other one."""

SECRETS = {
    *("http.keys", "callbacks.secret", "queue.url", "queue.password", "queue.sentinel_password"),
    *("s3.access_key", "s3.secret_key", "s3.session_token", "ec2.access_key_id", "ec2.access_key"),
}
"""Not printed by `tango config show` nor logged."""

_OTHERS = {"TANGO_CONFIG", "TANGO_REDIS_SERVER", "TANGO_URL", "TANGO_KEY"}


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the file (if any), then the environment. Raises ConfigError naming the offending setting."""
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text())
        except OSError as e:
            raise ConfigError(f"{path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: {e}") from e
    settings = _convert(tables, str(path), strict=True)
    overrides: dict[str, dict[str, Any]] = {}
    for variable, name, value in _from_environment(environ):
        table, _, key = name.partition(".")
        parsed: Any = [k for k in (p.strip() for p in value.split(",")) if k] if _is_tuple(table, key) else value
        _convert({table: {key: parsed}}, variable, strict=False)
        overrides.setdefault(table, {})[key] = parsed
    merged = msgspec.to_builtins(settings, enc_hook=str)
    for table, values in overrides.items():
        merged[table].update(values)
    return _check(_convert(merged, "environment", strict=False))


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    found = []
    for variable, value in environ.items():
        if variable in VARIABLES:
            found.append((variable, VARIABLES[variable], value))
        elif variable.startswith("TANGO_") and variable not in _OTHERS:
            table, _, key = variable.removeprefix("TANGO_").lower().partition("_")
            group = getattr(Settings(), table, None)
            if not isinstance(group, Group) or key not in group.__struct_fields__:
                raise ConfigError(f"{variable}: there is no such setting")
            found.append((variable, f"{table}.{key}", value))
    return [(variable, name, value) for variable, name, value in found if value != ""]


def _is_tuple(table: str, key: str) -> bool:
    return isinstance(getattr(getattr(Settings(), table), key), tuple)


def _convert(tables: Mapping[str, Any], source: str, *, strict: bool) -> Settings:
    def hook(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str):
            return Path(value).expanduser()
        raise NotImplementedError

    try:
        return msgspec.convert(tables, Settings, strict=strict, dec_hook=hook)
    except msgspec.ValidationError as e:
        text, _, where = str(e).partition(" - at `$.")
        key = where.rstrip("`")
        raise ConfigError(f"{source}: {key + ': ' if key else ''}{text}") from e


def _check(s: Settings) -> Settings:
    if problems := [problem for key in s.http.keys if (problem := key_problem(key))]:
        raise ConfigError(f"http.keys: {problems[0]}")
    aliases = [(a, b) for a in s.http.keys for b in s.http.keys if a != b and b.startswith(a + "-")]
    if aliases:
        raise ConfigError(
            f"http.keys: keys number {s.http.keys.index(aliases[0][0]) + 1} and "
            f"{s.http.keys.index(aliases[0][1]) + 1} alias: one is the other plus '-…', "
            "so that two courselabs could share a directory"
        )
    for name in SIZES:
        if getattr(s.limits, f"max_{name}") < getattr(s.limits, name):
            raise ConfigError(f"limits.max_{name}: less than limits.{name}")
        for table in s.limits.image:
            own, most = getattr(table, name), getattr(table, f"max_{name}") or getattr(s.limits, f"max_{name}")
            if own is not None and own > most:
                raise ConfigError(f"limits.image: {table.name}: {name} is more than max_{name}, which is {most}")
    for pool in s.pools.image:
        if 0 < (s.pools.max if pool.max is None else pool.max) < pool.min:
            raise ConfigError(f"pools.image: {pool.pattern}: max is less than min")
    _check_engines(s.docker)
    if s.dispatcher.adopt_grace_s < s.dispatcher.lease_s:
        raise ConfigError("dispatcher.adopt_grace_s: less than dispatcher.lease_s")
    _check_s3(s.store, s.s3)
    return s


def _check_s3(store: Store, s3: S3) -> None:
    if store.url and not re.fullmatch(
        r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[\w./-]{0,200})?", store.url, re.ASCII
    ):
        raise ConfigError("store.url (TANGO_STORE_URL): expected s3://bucket or s3://bucket/prefix")
    if s3.endpoint and not re.fullmatch(r"https?://[^/\s]+/?", s3.endpoint):
        raise ConfigError("s3.endpoint (TANGO_S3_ENDPOINT): expected https://host or http://host:port")
    if bool(s3.access_key) != bool(s3.secret_key):
        raise ConfigError("s3.access_key and s3.secret_key: one is set and the other is not")


def _check_engines(docker: Docker) -> None:
    for number, host in enumerate(docker.hosts):
        where = f"docker.hosts: {host.name}"
        if host.name in {other.name for other in docker.hosts[:number]}:
            raise ConfigError(f"{where}: two hosts have this name")
        if host.url in {other.url for other in docker.hosts[:number]}:
            raise ConfigError(f"{where}: another host has the same url")
        over_ssh = host.url.startswith("ssh://")
        tls = {"ca": host.ca, "cert": host.cert} | ({} if over_ssh else {"key": host.key})
        if over_ssh or host.url.startswith("unix://"):
            if named := [name for name, file in tls.items() if file is not None]:
                raise ConfigError(f"{where}: {named[0]} is for tcp:// and https:// only")
        elif len({file is None for file in tls.values()}) > 1 or (host.url.startswith("https") and host.ca is None):
            raise ConfigError(f"{where}: TLS needs ca, cert and key together")
        if host.known_hosts is not None and not over_ssh:
            raise ConfigError(f"{where}: known_hosts is for ssh:// only")
        for name in ("ca", "cert", "key", "known_hosts"):
            if (file := getattr(host, name)) is not None and not file.is_absolute():
                raise ConfigError(f"{where}: {name}: {file} is no absolute path")


def key_problem(key: str) -> str | None:
    """Why a word cannot be a key: it begins the names of directories, and is a part of every path."""
    if not key or "/" in key or key.startswith(".") or any(c.isspace() or not c.isprintable() for c in key):
        return "a key must not begin with a dot nor hold '/', white space or control characters"
    return None


def show(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, secrets replaced."""
    shown: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    for name in SECRETS:
        table, _, key = name.partition(".")
        if shown[table][key]:
            shown[table][key] = "(set)"
    return shown
