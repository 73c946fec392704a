"""Settings of the service as a whole: requests, queue, files, courses and callbacks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from .groups import Bytes, Count, Days, Group, Port, Priority, Room, Seconds


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
    unfinished_s: Seconds = 86_400.0
    """What an upload that was cut off has left is removed so long, and `dispatcher.stray_age_s`, after it began; longer
    than any upload takes."""


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


MOST_REDIRECTS = 5
"""That a callback's delivery follows."""


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
