"""The queue's face: one short method a script. Decides nothing; the scripts in lua/ do, atomically.

Blocking reads are bells.py's, on connections of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .. import shares
from ..config import Settings
from ..errors import QueueFull, QueueOutOfMemory
from ..feedback import short, verdict_text
from ..machine import Credentials
from ..model import Claim, DispatcherRecord, Forecast, JobRecord, JobSpec, PoolOrder, Verdict
from . import figures, keys, records
from .connection import ID_RESERVE, Marks, Server, tell_loss
from .history import History
from .orders import Orders
from .outbox import LONGEST_BACKOFF_S, Outbox

FORETOLD_AT_ONCE = 100
"""Forecasts in one call, so that a long list does not keep the server from others."""

FRESH_MS = 10_000
"""A dispatcher that does not ask again within this time makes no machines."""


class Answer(StrEnum):
    """What a script says to a job's holder."""

    OK = "OK"
    DONE = "DONE"
    SPENT = "SPENT"
    CANCEL = "CANCEL"
    STALE = "STALE"


class Cancelled(StrEnum):
    """What became of a request to cancel."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    COMPLETED = "completed"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Added:
    id: int
    new: bool
    """False if an identical addJob has given the id before."""


class Queue(Outbox, History, Orders):
    """The queue. `timeout_s` bounds every call, repeats included; then QueueUnavailable is raised."""

    def __init__(self, settings: Settings, *, timeout_s: float = 5.0, marks: Marks | None = None) -> None:
        self._settings = settings
        self._marks = marks
        self._mark = 0
        self._mark_lock = asyncio.Lock()
        self._room_checked = 0.0
        server = Server(settings.queue, timeout_s=timeout_s, quiet_ms=self._quiet_ms, marks=marks)
        super().__init__(settings, server)

    async def open(self) -> None:
        """Connects. Raises QueueUnavailable."""
        await self._server.command("PING")

    async def close(self) -> None:
        await self._server.close()

    # -- from tango-http -------------------------------------------------------------------------

    async def add(self, spec: JobSpec, *, fingerprint: str, credentials: Credentials | None = None) -> Added:
        """Accepts a job. The same fingerprint within `same_job_s` is the same job. Its credentials are kept apart.

        Raises QueueFull, QueueUnavailable. When this returns, Redis has the job, and the mark
        of ids that survives Redis is above its id.
        """
        await self._require_room()
        settings, now = self._settings, int(time.time() * 1000)
        lane = shares.lane_of(settings.share, spec.lab, spec.courselab)
        superseded = verdict_text(Verdict.CANCELLED)
        arguments = [
            records.pack(spec),
            spec.class_name,
            spec.lab,
            spec.output_name,
            spec.pin,
            fingerprint,
            int(settings.queue.same_job_s * 1000),
            spec.callback_url or "",
            int(settings.callbacks.min_age_s * 1000),
            int(settings.callbacks.unanswered_s * 1000),
            int(self._marks is not None),
            lane.name,
            lane.weight,
            lane.max_running,
            lane.max_running_each,
            spec.submitter,
            spec.priority,
            lane.resubmission.value,
            superseded,
            short(verdict=superseded, at_ms=now),
            spec.slots,
            int((spec.limits.timeout_s + settings.dispatcher.machine_wait_s) * 1000),
            records.pack(credentials) if credentials else "",
            *spec.notes,
        ]
        try:
            job_id, new = await self._run("add", *arguments)
            if job_id == 0 and self._marks is not None:
                # Emptied under a living connection: the greeting that would have noticed is long past.
                mark = await self._marks(0)
                tell_loss(await self._run("raise_ids", mark), mark)
                job_id, new = await self._run("add", *arguments)
        except QueueOutOfMemory as e:
            raise QueueFull("The job queue is full: Redis is out of memory") from e
        await self._raise_mark(job_id)
        return Added(id=job_id, new=bool(new))

    async def answered(self, *job_ids: int) -> None:
        """The answers that gave these ids have been flushed to their clients."""
        await self._run("answered", *job_ids)

    async def cancel(self, job_id: int) -> Cancelled:
        text = verdict_text(Verdict.CANCELLED)
        note = short(verdict=text, at_ms=int(time.time() * 1000))
        return Cancelled((await self._run("cancel", job_id, text, note)).decode())

    async def job(self, job_id: int) -> JobRecord | None:
        found = await self._command("HGETALL", f"{self._prefix}job:{job_id}")
        return records.job(job_id, found) if found else None

    async def job_of_output(self, lab: str, output_name: str) -> JobRecord | None:
        """The newest job added under that output name."""
        job_id = await self._command("HGET", f"{self._prefix}outputs:{lab}", output_name)
        return await self.job(int(job_id)) if job_id else None

    async def newest_of_output(self, lab: str, output_name: str) -> int:
        """The id of the newest job added under that output name, or 0."""
        return int(await self._command("HGET", f"{self._prefix}outputs:{lab}", output_name) or 0)

    async def forecasts(self, job_ids: Sequence[int], slots: int, classes: Collection[str]) -> dict[int, Forecast]:
        """Of those of the jobs that are queued, given what all living dispatchers offer together."""
        found: dict[int, Forecast] = {}
        for start in range(0, len(job_ids), FORETOLD_AT_ONCE):
            some = job_ids[start : start + FORETOLD_AT_ONCE]
            told = await self._run("position", slots, len(classes), *classes, *some)
            found |= {i: records.forecast(*f) for i, f in zip(some, told, strict=True) if f[0] >= 0}
        return found

    async def waiting(self) -> dict[str, int]:
        """How many jobs wait in each requirement class."""
        found = await self._command("HGETALL", f"{self._prefix}classes")
        return {name.decode(): int(n) for name, n in found.items()}

    async def live(self, limit: int) -> list[JobRecord]:
        """Held jobs, then queued ones in their order; at most `limit`."""
        ids = await self._command("ZRANGE", f"{self._prefix}held", 0, limit - 1)
        ids = sorted(map(int, ids))
        if len(ids) < limit:
            queued = await self._command("ZRANGE", f"{self._prefix}queued", 0, limit - len(ids) - 1)
            ids += [int(i) for i in queued if int(i) not in set(ids)]
        return [job for job in await self._jobs(ids) if job.state != "dead"]

    async def partial_output(self, job_id: int) -> bytes:
        """The visible output of a running job; b"" if there is none yet."""
        return bytes(await self._command("GET", f"{self._prefix}live:{job_id}") or b"")

    async def counters(self) -> dict[str, int]:
        found = await self._command("HGETALL", f"{self._prefix}counters")
        return {name.decode(): int(value) for name, value in found.items()}

    async def dispatchers(self) -> list[DispatcherRecord]:
        """Every dispatcher that ever published itself; `age_s` tells when it last did."""
        found, beats, (seconds, _) = await self._server.commands(
            [("HGETALL", f"{self._prefix}dispatchers"), ("HGETALL", f"{self._prefix}beats"), ("TIME",)]
        )
        ages = {name: int(seconds) - int(at) / 1000 for name, at in beats.items()}
        return [records.dispatcher(packed, ages.get(name, float("inf"))) for name, packed in found.items()]

    async def figures(self) -> figures.Figures:
        """How much waits, runs and is due. Two trips, whatever the number of jobs."""
        head, *answers = await self._server.commands(figures.commands(self._prefix))
        waits = await self._command("HGET", f"{self._prefix}job:{int(head[0])}", "added_ms") if head else None
        return figures.read(answers, int(waits or 0), await self._server.info("memory"))

    async def want_pool(self, image: str, order: PoolOrder | None) -> None:
        """Orders prepared machines of an image, or of EVERY_IMAGE, on every host that has it; None: no order."""
        if order is None:
            await self._command("HDEL", f"{self._prefix}pools", image)
        else:
            await self._command("HSET", f"{self._prefix}pools", image, records.pack(order))
        await self._ring_dispatchers()

    async def ask_build(self, image: str, ref: str) -> None:
        """Orders every host that can to load the archive `ref` as `image`; the same order twice is one."""
        await self._command("HSETNX", f"{self._prefix}builds", f"{image}|{ref}", records.pack_plain({}))
        await self._ring_dispatchers()

    async def move_image(self, image: str, what: str) -> None:
        """Orders every host to PULL the image, or one of each dispatcher's to PUSH it; again, whatever came of it."""
        await self._command("HSET", f"{self._prefix}builds", f"{image}|{what}", records.pack_plain({}))
        await self._ring_dispatchers()

    async def build_verdict(self, image: str, ref: str) -> str | None:
        """None: no host has said anything yet; "": one has loaded it; else why none could."""
        packed = await self._command("HGET", f"{self._prefix}builds", f"{image}|{ref}")
        verdicts = records.unpack_plain(packed) if packed else {}
        if not verdicts:
            return None
        return "" if "" in verdicts.values() else next(iter(verdicts.values()))

    async def _ring_dispatchers(self) -> None:
        for record in await self.dispatchers():
            key = keys.control(self._prefix, record.instance)
            await self._server.commands(
                [("RPUSH", key, b"1"), ("LTRIM", key, -keys.BELLS_MAX, -1), ("EXPIRE", key, 60)]
            )

    # -- from tango-dispatcher -------------------------------------------------------------------

    async def claim(self, instance: str, request: str, room: Mapping[str, int], most: int = 1) -> list[Claim]:
        """The next jobs, under a lease: until `most` slots are filled, and of each class at most its room.

        The last one may want more slots than are left.

        The same request gets the same answer, less what is no longer held.
        """
        flat = [part for offer in room.items() for part in offer]
        found = await self._run("claim", instance, request, self._lease_ms, most, *flat)
        return [records.claim(one) for one in found]

    async def start(self, claim: Claim, machine: str, vmms: str = "") -> Answer:
        return await self._ask("start", claim.id, claim.seq, machine, vmms)

    async def extend(self, claims: Sequence[tuple[int, int]]) -> list[Answer]:
        """Another lease for each (job, seq)."""
        flat = [part for pair in claims for part in pair]
        return [Answer(a.decode()) for a in await self._run("extend", self._lease_ms, *flat)]

    async def end(
        self,
        claim: Claim,
        verdict: Verdict,
        text: str,
        output_ref: str,
        *,
        counter: str = "",
        trace: Sequence[str] = (),
    ) -> Answer:
        """The job is dead with this verdict, and its callback is due. Raises QueueUnavailable."""
        return await self._ask("end", claim.id, claim.seq, verdict, text, output_ref, counter, *trace)

    async def credentials(self, claim: Claim) -> Credentials | None:
        """Those that came with the job; None if there are none, or the job is no longer the caller's."""
        packed = await self._run("credentials", claim.id, claim.seq)
        return records.credentials(packed) if packed else None

    async def retry(
        self, claim: Claim, reason: str, *, charged: bool = True, counter: str = "", hopeless: bool = False
    ) -> Answer:
        """Back into the queue after a fault of the infrastructure, unless it is hopeless."""
        most = self._settings.dispatcher.job_retries if charged else -1
        most = 0 if hopeless else most
        return await self._ask("retry", claim.id, claim.seq, reason, most, counter)

    async def adopt(self, machine: str, instance: str) -> tuple[Claim, float] | None:
        """The job that runs on the machine, under a new seq, and the seconds since it was started."""
        found = await self._run("adopt", machine, instance, self._lease_ms)
        return (records.claim(found), found[5] / 1000) if found else None

    async def reap(self) -> list[tuple[int, bool]]:
        """Re-queues or ends what no one extends. Answers (job, whether it is dead)."""
        settings, now = self._settings.dispatcher, int(time.time() * 1000)
        gave_up = verdict_text(
            Verdict.GAVE_UP, attempts=settings.job_retries + 1, reason="Its dispatchers were lost while it ran."
        )
        cancelled = verdict_text(Verdict.CANCELLED)
        done = await self._run(
            "reap",
            int(settings.adopt_grace_s * 1000),
            settings.job_retries,
            self._quiet_ms,
            int(max(settings.lease_s * 2 / 3, settings.upkeep_s * 2) * 1000),
            100,
            gave_up,
            short(verdict=gave_up, at_ms=now),
            cancelled,
            short(verdict=cancelled, at_ms=now),
            int(self._furthest_callback_s * 1000),
        )
        return [(job_id, what == b"dead") for job_id, what in done]

    async def counted_on(self, machines: Sequence[str]) -> set[str]:
        """Which of these machines a live job runs on, whether or not anybody holds it."""
        jobs = await self._command("HMGET", f"{self._prefix}machines", *machines) if machines else []
        return {machine for machine, job in zip(machines, jobs, strict=True) if job is not None}

    async def scale(self, offer: str, instance: str, waiting: int, each: int, fresh: int, most: int) -> int:
        """How many machines, at most `most`, the dispatcher may make for a class of which so many jobs wait.

        Every `each` of them are reason for one, less those that are `fresh`, of it and of all that offer as much.
        """
        return int(await self._run("scale", offer, instance, waiting, each, fresh, most, FRESH_MS))

    async def show(self, claim: Claim, offset: int, data: bytes) -> int:
        """Adds to the visible output; answers its length now, or -1 if the job is not the caller's."""
        return int(await self._run("show", claim.id, claim.seq, offset, data, 7200))

    async def beat(self, record: DispatcherRecord) -> None:
        await self._run("beat", record.install, records.pack(record))

    async def lead_upkeep(self, instance: str, for_s: float) -> bool:
        """Whether this dispatcher does the upkeep for the next `for_s` seconds."""
        key = f"{self._prefix}upkeep"
        if await self._command("SET", key, instance, "NX", "PX", int(for_s * 1000)):
            return True
        return bool(await self._command("GET", key) == instance.encode())

    async def live_pins(self) -> set[str]:
        """The pins of all live jobs."""
        return {pin.decode() for pin in await self._command("HKEYS", f"{self._prefix}pins")}

    async def pool_orders(self) -> dict[str, PoolOrder]:
        """By image, or EVERY_IMAGE."""
        found = await self._command("HGETALL", f"{self._prefix}pools")
        return {image.decode(): records.pool_order(packed) for image, packed in found.items()}

    async def build_orders(self) -> dict[tuple[str, str], dict[str, str]]:
        """(image, archive or PULL or PUSH) → the verdicts so far, by install, or install/host where it has several."""
        found = await self._command("HGETALL", f"{self._prefix}builds")
        split = {tuple(name.decode().rsplit("|", 1)): records.unpack_plain(v) for name, v in found.items()}
        return {(image, ref): verdicts for (image, ref), verdicts in split.items()}

    async def built(self, image: str, ref: str, install: str, problem: str) -> None:
        """This install's verdict on a build order."""
        await self._run("built", f"{image}|{ref}", install, problem)

    # -- within --------------------------------------------------------------------------------

    @property
    def _lease_ms(self) -> int:
        return int(self._settings.dispatcher.lease_s * 1000)

    @property
    def _quiet_ms(self) -> int:
        """A lease and a beat: time for every living holder to extend what it holds."""
        return self._lease_ms + self._lease_ms // 3

    @property
    def _furthest_callback_s(self) -> float:
        """No callback is ever put further ahead than this."""
        callbacks = self._settings.callbacks
        return max(LONGEST_BACKOFF_S, callbacks.hold_s, callbacks.min_age_s, callbacks.unanswered_s)

    async def _raise_mark(self, job_id: int) -> None:
        if self._marks is None or job_id <= self._mark:
            return
        async with self._mark_lock:
            if job_id > self._mark:
                self._mark = await self._marks(job_id + ID_RESERVE)

    async def _require_room(self) -> None:
        """Refuses jobs near Redis's memory limit, so that ending the running ones always has room."""
        now = time.monotonic()
        if now - self._room_checked < 1.0:
            return
        memory = await self._server.info("memory")
        limit = int(memory.get("maxmemory", 0))
        if limit and int(memory["used_memory"]) > limit * self._settings.queue.max_memory_share:
            raise QueueFull("The job queue is full: Redis is near its memory limit")
        self._room_checked = now

    async def _ask(self, script: str, *args: Any) -> Answer:
        return Answer((await self._run(script, *args)).decode())
