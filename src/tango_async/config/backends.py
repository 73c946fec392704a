"""Settings of each back-end."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .groups import Count, Group, Port, Room, Seconds


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
    images: dict[str, str] = msgspec.field(default_factory=dict)
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
    images: dict[str, str] = msgspec.field(default_factory=dict)
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
    user_data: Path | None = None
    """A file with user data of your own for every instance, in a format of cloud-init's, such as `#cloud-config` or
    `#!/bin/sh`; read when the dispatcher starts. It is combined with ours, the host key and the instance's end, and of
    what both set ours holds; together 16 KiB at most. With `host_keys = "console"` it may be in another format, and
    then is handed on alone. Instances in an account that a job brought do not get it."""
    boot_s: Seconds = 240.0
    """Longest wait for a new instance until it lets the dispatcher in. `dispatcher.machine_wait_s` must be longer."""
    lost_s: Seconds = 120.0
    """An instance that runs and cannot be reached for so long counts as lost."""
    reuse: bool = False
    """Instances serve one job after the other, cleaned in between; else each serves one and is terminated."""
    idle_s: Seconds = 300.0
    """How long an instance without a job is kept for the next one, with `reuse`."""
    jobs_per_instance: Count = 4
    """So many waiting jobs of an image are reason for one more instance, with `reuse`; a rest of them is, too. Where
    there is none the first job has one at once. 1: one for each job that waits."""
    scale_after_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """… when they have waited so long, with `reuse`, so that instances that are there may work off a short burst. A new
    instance is given as long to show what it does, before the same jobs are reason for another one."""
    max_life_minutes: Annotated[int, Meta(ge=5, le=10_080)] = 360
    """An instance ends itself so long after it was made ready for a job, whatever becomes of its dispatcher, which puts
    that off while the instance waits; must be longer than any job."""
    job_accounts: bool = True
    """Jobs may bring an account of their own: addJob's `accessKeyId` and `accessKey`."""
    keep_failed: bool = False
    """An instance whose job was lost or never started is kept for inspection until `max_life_minutes`, at your cost."""
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    """Further tags of instances and their volumes."""
