"""The small model of the queue: jobs, who holds them, and the settings under which they live."""

from __future__ import annotations

from dataclasses import dataclass

from tango_async.config import CourseShare, Share
from tango_async.model import Claim, JobSpec

CLASSES = ("one", "two")
LABS = {"test-wide-lab": "wide-lab", "test-each-lab": "each-lab"}
"""Of two courses: one with a cap, one with a cap for each submitter."""
CAP, EACH = 2, 1
SHARE = Share(
    course=(
        CourseShare(pattern="test-wide", weight=3, max_running=CAP),
        CourseShare(pattern="*", max_running_each=EACH),
    )
)
SUBMITTERS = ("", "a@example.edu", "b@example.edu")
MOST_RETRIES = 1
LONG_S = 3600.0
"""Every time limit: a run that takes long on a slow machine must meet none by itself."""
KEPT = 2
"""Dead jobs that history keeps."""


@dataclass(eq=False)
class Job:
    """What must be true of one job."""

    id: int
    spec: JobSpec
    fingerprint: str
    state: str = "queued"
    seq: int = 0
    attempts: int = 0
    retries: int = 0
    machine: str = ""
    cancel: bool = False
    overdue_s: float = 0.0
    """How long its lease has been over."""
    verdict: str = ""
    output: str = ""
    ended_by: int = -1
    """The seq that ended it; 0 if no holder did."""
    callback: str = ""
    """pending, delivered, given up; empty before the end and without a URL."""
    tried: bool = False
    due: bool = False
    leaving: bool = False
    """Retired: its output may be gone, and it is only to be forgotten."""
    live: bytes = b""
    order: int = 0

    @property
    def lane(self) -> str:
        return self.spec.lab.removesuffix("-lab")

    @property
    def place(self) -> str:
        return f"{self.spec.image}\t{self.lane}"

    @property
    def who(self) -> tuple[str, str]:
        return self.lane, self.spec.submitter

    @property
    def held(self) -> bool:
        return self.state in ("assigned", "running")

    def leave(self) -> None:
        self.machine, self.live, self.overdue_s = "", b"", 0.0

    def queue_again(self) -> None:
        self.leave()
        self.state = "queued"

    def die(self, verdict: str, output: str = "", by: int = 0) -> None:
        assert self.state not in ("dead", "forgotten"), "a second death"
        self.leave()
        self.state, self.verdict, self.output, self.ended_by = "dead", verdict, output, by
        self.callback = "pending" if self.spec.callback_url else ""


@dataclass(eq=False)
class Held:
    """A claim as some dispatcher remembers it, for ever."""

    job: Job
    claim: Claim

    @property
    def present(self) -> bool:
        return self.job.held and self.job.seq == self.claim.seq


@dataclass
class Dispatcher:
    """Its last claim request and what came of it."""

    request: str = ""
    classes: tuple[str, ...] = ()
    held: Held | None = None
