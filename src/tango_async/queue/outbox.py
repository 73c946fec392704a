"""The outbox: callbacks that are due, those that were delivered or given up, and what came of each try."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from ..model import CallbackRecord, CallbackState, Due
from . import records
from .asking import PAGE, Asking

LONGEST_BACKOFF_S = 720.0
"""No callback is put off for longer, so that one which is due later than that shows a clock that was set back."""

MOST_PAUSE_S = 3.0
"""Between two looks of living deliverers, which look every second; after a longer one the clock may have jumped."""


class Resent(StrEnum):
    """What became of the order to deliver a callback now."""

    OK = "ok"
    NOT_FOUND = "not_found"
    NOT_ENDED = "not_ended"
    NO_CALLBACK = "no_callback"


class Outbox(Asking):
    async def due(self, limit: int, hold_s: float) -> list[Due]:
        """Takes callbacks that are due, the longest due first; no one else gets them for `hold_s`."""
        times_s = (hold_s, self._settings.callbacks.min_age_s, MOST_PAUSE_S)
        return [records.due(entry) for entry in await self._run("due", limit, *(int(s * 1000) for s in times_s))]

    async def delivered(self, job_id: int, what: str) -> None:
        await self._run("delivered", job_id, _one_line(what), -1)

    async def defer(self, job_id: int, what: str, wait_s: float | None) -> None:
        """The delivery did not work: again in `wait_s`, at most LONGEST_BACKOFF_S, or given up (None)."""
        wait_ms = -2 if wait_s is None else int(min(wait_s, LONGEST_BACKOFF_S) * 1000)
        await self._run("delivered", job_id, _one_line(what), wait_ms)

    async def next_due_s(self) -> float | None:
        """Seconds until the next callback is due (negative: overdue); None if there is none."""
        first = await self._command("ZRANGE", f"{self._prefix}outbox", 0, 0, "WITHSCORES")
        if not first:
            return None
        score = first[0][1] if isinstance(first[0], list) else first[1]
        return float(float(score) - await self.now_ms()) / 1000

    async def resend(self, job_id: int) -> Resent:
        """Makes a dead job's callback due now, also one that was delivered or given up."""
        return Resent((await self._run("resend", job_id)).decode())

    async def callbacks(self, limit: int) -> list[CallbackRecord]:
        """Those to be delivered in order of due time, then the latest given up, then the latest delivered.

        At most `limit` of each; the delivered ones are those among so many of the latest dead jobs.
        """
        reads = (("outbox", ()), ("unsent", ("REV",)), ("dead", ("REV",)))
        found = await self._server.commands(
            [("ZRANGE", f"{self._prefix}{name}", 0, limit - 1, *order) for name, order in reads]
        )
        pending, unsent, dead = [await self._callbacks([int(i) for i in ids]) for ids in found]
        return [*pending, *unsent, *(one for one in dead if one.state is CallbackState.DELIVERED)]

    async def callback(self, job_id: int) -> CallbackRecord | None:
        """How it stands with one job's callback; None if there is no such job, or it has none."""
        found = await self._callbacks([job_id])
        return found[0] if found else None

    async def _callbacks(self, job_ids: Sequence[int]) -> list[CallbackRecord]:
        found = []
        for start in range(0, len(job_ids), PAGE):
            part = job_ids[start : start + PAGE]
            answers = await self._server.commands([read for job_id in part for read in self._reads(job_id)])
            for n, job_id in enumerate(part):
                fields, due, given_up = answers[3 * n : 3 * n + 3]
                if fields[0] is not None and fields[1]:
                    found.append(records.callback(job_id, fields, due, given_up is not None))
        return found

    def _reads(self, job_id: int) -> list[tuple[Any, ...]]:
        return [
            ("HMGET", f"{self._prefix}job:{job_id}", "spec", "cb", "cb_tries", "cb_log", "cb_done_ms"),
            ("ZSCORE", f"{self._prefix}outbox", job_id),
            ("ZSCORE", f"{self._prefix}unsent", job_id),
        ]


def _one_line(what: str) -> bytes:
    """As the log takes it; a receiver's broken answer may come as an error of several lines."""
    return " ".join(what.split()).encode(errors="replace")
