"""Jobs that ended: which are remembered, which are to be forgotten, and whose a stored feedback is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from ..model import JobRecord
from .asking import PAGE, Asking


class Kept(NamedTuple):
    """A dead job that is remembered, as retention looks at it."""

    id: int
    ended_ms: int
    lab: str
    output_ref: str


class Retired(NamedTuple):
    """A dead job that may be forgotten: no callback waits for its output, nor ever will."""

    id: int
    output_ref: str
    lab: str
    output_name: str
    had_callback: bool
    """A callback was still to be delivered, and is not any more."""


class History(Asking):
    async def dead(self, limit: int, offset: int = 0) -> list[JobRecord]:
        """The newest dead jobs first, from the `offset`th on; at most `limit`."""
        ids = await self._command("ZRANGE", f"{self._prefix}dead", offset, offset + limit - 1, "REV")
        return await self._jobs([int(i) for i in ids])

    async def every_job(self) -> AsyncIterator[list[JobRecord]]:
        """All jobs, live and dead, in pages. One that changes its place meanwhile may come twice."""
        # In the order in which jobs go through them, and `queued` again for those that go back.
        sets = [("ZRANGE", f"{self._prefix}{name}", 0, -1) for name in ("queued", "held", "queued", "dead")]
        ids = list(dict.fromkeys(int(i) for found in await self._server.commands(sets) for i in found))
        for start in range(0, len(ids), PAGE):
            yield await self._jobs(ids[start : start + PAGE])

    async def kept(self) -> AsyncIterator[list[Kept]]:
        """All dead jobs, the newest first, in pages."""
        found = await self._command("ZRANGE", f"{self._prefix}dead", 0, -1, "REV", "WITHSCORES")
        for start in range(0, len(found), PAGE):
            page = [(int(job_id), int(ended_ms)) for job_id, ended_ms in found[start : start + PAGE]]
            reads = [("HMGET", f"{self._prefix}job:{job_id}", "lab", "output") for job_id, _ in page]
            fields = await self._server.commands(reads)
            yield [
                Kept(job_id, ended_ms, lab.decode(), (ref or b"").decode())
                for (job_id, ended_ms), (lab, ref) in zip(page, fields, strict=True)
                if lab is not None
            ]

    async def expired(self, limit: int = 200) -> list[tuple[int, str]]:
        """Dead jobs that history no longer keeps: (id, output reference)."""
        settings = self._settings.queue
        days_ms = int(settings.history_days * 86_400_000)
        found = await self._run("expired", settings.history_limit, days_ms, limit)
        return [(job_id, ref.decode()) for job_id, ref in found]

    async def retire(self, job_ids: Sequence[int], *, whatever: bool = False) -> list[Retired]:
        """Those of the jobs whose outputs may go now; they are to be forgotten afterwards.

        One whose callback is pending is left out; or, `whatever` waits, its callback is given up.
        """
        found = await self._run("retire", int(whatever), *job_ids) if job_ids else []
        return [
            Retired(job_id, ref.decode(), lab.decode(), name.decode(), bool(had))
            for job_id, ref, lab, name, had in found
        ]

    async def forget(self, job_ids: Sequence[int]) -> None:
        if job_ids:
            await self._run("forget", *job_ids)

    async def unnamed(self, refs: Sequence[str]) -> list[str]:
        """Which of these stored feedbacks are nobody's: their holder was lost before it could end the job."""
        return [ref.decode() for ref in await self._run("unnamed", *refs)] if refs else []
