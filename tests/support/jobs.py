"""Job specs for tests that need one and do not care which."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from tango_async.machine import Limits, MachineSpec
from tango_async.model import Claim, JobSpec
from tango_async.queue.redis import Queue


def limits(**changes: float) -> Limits:
    values: dict[str, float] = {
        "timeout_s": 10,
        "output_bytes": 1_024_000,
        "output_stop_bytes": 64 * 1024**2,
        "file_bytes": 64 * 1024**2,
        "processes": 64,
        "disk_bytes": 64 * 1024**2,
        "memory_bytes": 512 * 1024**2,
        "cores": 1.0,
    }
    return Limits(**(values | changes))  # type: ignore[arg-type]


def spec(**changes: object) -> JobSpec:
    values: dict[str, object] = {
        "name": "course_lab_1_student@example.edu",
        "lab": "test-course-lab",
        "courselab": "course-lab",
        "image": "autograding_image",
        "output_name": f"{uuid4().hex}.out",
        "pin": uuid4().hex,
        "files": (),
        "limits": limits(),
    }
    return JobSpec(**(values | changes))  # type: ignore[arg-type]


async def claim_one(
    queue: Queue, classes: Sequence[str] = ("autograding_image",), *, instance: str = "a", request: str = ""
) -> Claim | None:
    """The next job of the classes, as a dispatcher with one slot asks for it."""
    claims = await queue.claim(instance, request or uuid4().hex, dict.fromkeys(classes, 1))
    return claims[0] if claims else None


def machine_of(image: str, **changes: object) -> MachineSpec:
    values: dict[str, object] = {
        "image": image, "network": False, "cores": 1.0, "memory_bytes": 1024**3, "processes": 64, "disk_bytes": 1024**3,
    }  # fmt: skip
    return MachineSpec(**(values | changes))  # type: ignore[arg-type]
