"""The example assignments, and how a service grades them: as Autolab would, by upload, addJob and poll."""

from __future__ import annotations

import json
import re
from pathlib import Path

from support.service import Service

EXAMPLES = Path(__file__).parents[2] / "examples"
ASSIGNMENTS = sorted(path.parent.name for path in EXAMPLES.glob("*/Makefile"))

_DECLARED = re.compile(r"^\| `(right|wrong)` \| (\d+) and (\d+)", re.MULTILINE)


def files_of(assignment: str, submission: str) -> dict[str, bytes]:
    """What Autolab would upload: the assignment's files and one submission."""
    folder = EXAMPLES / assignment
    paths = [p for p in folder.iterdir() if p.is_file() and p.name != "README.md"]
    paths += [p for p in (folder / "submissions" / submission).iterdir() if p.is_file()]
    return {p.name: p.read_bytes() for p in paths}


def declared(assignment: str) -> dict[str, list[int]]:
    """Submission → points of each problem, as the assignment's README says."""
    said = (EXAMPLES / assignment / "README.md").read_text()
    return {submission: [int(first), int(second)] for submission, first, second in _DECLARED.findall(said)}


def scores(feedback: str) -> dict[str, int]:
    """Problem → points, from the feedback's last line. Raises ValueError if that is no autoresult."""
    last = feedback.rstrip().rpartition("\n")[2]
    try:
        found: dict[str, int] = json.loads(last)["scores"]
    except (KeyError, TypeError) as e:
        raise ValueError(f"no scores in {last!r}") from e
    return found


async def grade(service: Service, assignment: str, submission: str, within_s: float = 90.0, **fields: object) -> str:
    """The feedback."""
    lab, files = f"{assignment}-{submission}", files_of(assignment, submission)
    await service.upload(lab, files)
    await service.add(lab, list(files), "out.txt", **fields)
    return await service.poll(lab, "out.txt", within_s)
