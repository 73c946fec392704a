"""The words of Tango's feedback file and trace, to the letter where Autolab reads them."""

from __future__ import annotations

import time

from .model import Verdict

_TEXT = {
    Verdict.SUCCESS: "Success: Autodriver returned normally",
    Verdict.TIMEOUT: "Error: Job timed out after {timeout_s} seconds",
    Verdict.COPY_IN_FAILED: "Error: Copy in to VM failed (status=1)",
    Verdict.OS_ERROR: "Error: OS error while running job on VM",
    Verdict.COPY_OUT_FAILED: "Error: Copy out from VM failed (status=1)",
    Verdict.OUTPUT_TOO_LONG: "Error: Output exceeded {output_stop_bytes} bytes and the job was stopped",
    Verdict.CANCELLED: "Error: Job was cancelled",
    Verdict.GAVE_UP: "Internal error: Unable to complete job after {attempts} tries. {reason}",
}

ELIDED = b"\n...[excess bytes elided]...\n"
"""Stands where Tango cut a long output: the tail holds the scores and is kept."""


def ctime(at_ms: int) -> str:
    """`Mon Jan  2 15:04:05 2023`, always UTC: the only form that Autolab's plots parse."""
    return time.asctime(time.gmtime(at_ms / 1000))


def verdict_text(verdict: Verdict, **facts: object) -> str:
    """The sentence for a verdict, of the feedback's second line and the trace's last."""
    return _TEXT[verdict].format(**facts)


def header(*, name: str, job_id: int, received_ms: int, ended_ms: int, verdict: str, said: str = "") -> bytes:
    """What stands before the program's output, with a line of what else is `said` of the run.

    Autolab looks for the word `Autograder` in it.
    """
    began, ended = ctime(received_ms), ctime(ended_ms)
    more = f"Autograder [{ended}]: {said}\n" if said else ""
    return (
        f"Autograder [{began}]: Received job {name}:{job_id}\n"
        f"Autograder [{ended}]: {verdict}\n{more}"
        f"Autograder [{ended}]: Here is the output from the autograder:\n---\n"
    ).encode()


def short(*, verdict: str, at_ms: int) -> str:
    """The whole feedback of a job that has no output."""
    return f"Autograder [{ctime(at_ms)}]: {verdict}\n"


class CappedOutput:
    """A program's output, kept up to a limit: all of it, else its first and last halves.

    Memory stays within one and a half times the limit.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, chunk: bytes) -> None:
        self.total += len(chunk)
        room = self._limit - len(self._head)
        self._head += chunk[:room] if room > 0 else b""
        self._tail += chunk[max(room, 0) :]
        if len(self._tail) > self._limit:
            del self._tail[: -(self._limit // 2)]

    def bytes(self) -> bytes:
        if self.total <= self._limit:
            return bytes(self._head)
        first, last = self._limit // 2, self._limit - self._limit // 2
        # The second half may still begin inside what was kept as head.
        end = (self._head + self._tail)[-last:] if len(self._tail) < last else self._tail[-last:]
        return bytes(self._head[:first]) + ELIDED + bytes(end)
