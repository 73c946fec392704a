"""What is kept of each course: its uploads, and its dead jobs with their outputs, by days and bytes.

All of it is done in small steps, one course or one page of jobs at a time, and any of it may be done
twice or be cut off. Nothing here touches what a live job has pinned, nor an output whose callback is
still to be delivered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..config import CourseRetention, Settings
from ..config import Retention as RetentionSettings
from ..files.base import FileStore
from ..queue.history import Kept
from ..queue.redis import Queue

log = logging.getLogger(__name__)

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one course; None is any number."""

    upload_s: float | None
    upload_bytes: int | None
    output_s: float | None
    output_bytes: int | None


def course_of(lab: str) -> str:
    """A courselab's directory up to its last `-`: ten assessments are one course."""
    return lab.rpartition("-")[0] or lab


class Rules:
    """The limits of each course, as the settings have them."""

    def __init__(self, settings: RetentionSettings) -> None:
        self._settings = settings

    def of(self, course: str) -> Limits:
        special = next((rule for rule in self._settings.course if fnmatchcase(course, rule.pattern)), None)
        return Limits(
            upload_s=self._days("upload_days", special),
            upload_bytes=self._bytes("upload_bytes", special),
            output_s=self._days("output_days", special),
            output_bytes=self._bytes("output_bytes", special),
        )

    def about(self, what: str) -> bool:
        """Whether any course has a limit of that kind."""
        every = (self._settings, *self._settings.course)
        return any(getattr(one, f"{what}_days") or getattr(one, f"{what}_bytes") for one in every)

    def _value(self, name: str, special: CourseRetention | None) -> float:
        chosen = getattr(special, name, None)
        value: float = getattr(self._settings, name) if chosen is None else chosen
        return value

    def _days(self, name: str, special: CourseRetention | None) -> float | None:
        return self._value(name, special) * DAY_S or None

    def _bytes(self, name: str, special: CourseRetention | None) -> int | None:
        return int(self._value(name, special)) or None


async def forget(queue: Queue, store: FileStore, job_ids: Sequence[int]) -> int:
    """Removes dead jobs, their outputs first; those whose callback is pending stay. Returns how many went."""
    retired = await queue.retire(job_ids)
    for gone in retired:
        if gone.output_ref:
            await store.drop_output(gone.output_ref, gone.lab, gone.output_name)
    await queue.forget([gone.id for gone in retired])
    return len(retired)


async def apply(settings: Settings, queue: Queue, store: FileStore, done: asyncio.Event) -> None:
    """Looks at everything once; what is left to do when `done` is set stays for the next time."""
    rules = Rules(settings.retention)
    if rules.about("output"):
        await _trim_outputs(rules, queue, store, done)
    if rules.about("upload"):
        await _trim_uploads(rules, store, settings.dispatcher.stray_age_s, done)


async def _trim_outputs(rules: Rules, queue: Queue, store: FileStore, done: asyncio.Event) -> None:
    now_ms, forgotten = await queue.now_ms(), 0
    taken: dict[str, int] = defaultdict(int)
    async for page in queue.kept():
        sizes = await store.output_sizes([job.output_ref for job in page if job.output_ref])
        of_ref = dict(zip((job.output_ref for job in page if job.output_ref), sizes, strict=True))
        over: list[int] = []
        for job in page:  # the newest first: what is beyond the limit is the oldest
            taken[course_of(job.lab)] += of_ref.get(job.output_ref, 0)
            if _is_over(job, rules.of(course_of(job.lab)), now_ms, taken[course_of(job.lab)]):
                over.append(job.id)
        forgotten += await forget(queue, store, over)
        if done.is_set():
            break
    if forgotten:
        log.info("%d dead jobs were forgotten, as retention says for their courses", forgotten)


def _is_over(job: Kept, limits: Limits, now_ms: int, taken: int) -> bool:
    too_old = limits.output_s is not None and now_ms - job.ended_ms > limits.output_s * 1000
    return too_old or (limits.output_bytes is not None and taken > limits.output_bytes)


async def _trim_uploads(rules: Rules, store: FileStore, spare_s: float, done: asyncio.Event) -> None:
    courses: dict[str, list[str]] = defaultdict(list)
    for lab in await store.labs():
        courses[course_of(lab)].append(lab)
    files = size = 0
    for course, labs in courses.items():
        limits = rules.of(course)
        if limits.upload_s is None and limits.upload_bytes is None:
            continue
        removed = await store.trim_uploads(
            labs, unused_s=limits.upload_s, most_bytes=limits.upload_bytes, spare_s=spare_s
        )
        files, size = files + removed.files, size + removed.size
        if done.is_set():
            break
    if files:
        log.info("%d uploads (%d bytes) were removed, as retention says for their courses", files, size)
