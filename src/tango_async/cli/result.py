"""Reading a feedback file: the verdict, the exit status and the scores that it holds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_LINE = re.compile(rb"Autograder \[[^\]]*\]: (.*)")
_EXITED = re.compile(rb"Autodriver: Job exited with status (\d+)")


@dataclass(frozen=True, slots=True)
class Result:
    """One job's end. `seconds` from its being sent to its feedback being here."""

    id: int
    verdict: str
    exit_status: int | None
    score: dict[str, Any] | None
    feedback: bytes
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the job ran to its end and its Makefile succeeded."""
        return self.verdict.startswith("Success") and self.exit_status == 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "verdict": self.verdict,
            "exit_status": self.exit_status,
            "score": self.score,
            "seconds": round(self.seconds, 3),
            "feedback": self.feedback.decode(errors="replace"),
        }


def read(job_id: int, feedback: bytes, seconds: float) -> Result:
    """Only what stands before the first `---` is the service's; the rest is the job's own output."""
    header, _, output = feedback.partition(b"\n---\n")
    said = [match[1].decode(errors="replace") for line in header.splitlines() if (match := _LINE.fullmatch(line))]
    verdicts = [text for text in said if not text.startswith(("Received job ", "Here is the output"))]
    exited = _EXITED.match(output)
    return Result(
        id=job_id,
        verdict=verdicts[0] if verdicts else "",
        exit_status=int(exited[1]) if exited else None,
        score=_score(output),
        feedback=feedback,
        seconds=seconds,
    )


def output_of(feedback: bytes) -> bytes:
    """What the job itself printed."""
    output = feedback.partition(b"\n---\n")[2]
    return output.partition(b"\n")[2] if output.startswith(b"Autodriver: ") else output


def _score(output: bytes) -> dict[str, Any] | None:
    last = next((line for line in reversed(output.splitlines()) if line.strip()), b"")
    try:
        score = json.loads(last)
    except (ValueError, RecursionError):
        return None
    return score if isinstance(score, dict) else None
