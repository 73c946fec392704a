"""Whose turn it is, as the settings say: a job's lane, its weight and caps, its submitter and priority.

A lane is a course, so that ten assessments are not ten shares.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .config import CourseShare, Resubmission, Share

_VERSIONED = re.compile(r".*_\d+_(\S+@\S+)")
_NAMED = re.compile(r"(?:.*_)?([^_\s]+@\S+)")


@dataclass(frozen=True, slots=True)
class Lane:
    """What a course gets."""

    name: str
    """Begins with the key of its courselabs, as their directories do; never shown so."""
    weight: float
    max_running: int
    """0: as many as there are slots."""
    max_running_each: int
    """The same for each of its submitters."""
    resubmission: Resubmission


def course_of(lab: str, courselab: str) -> str:
    """`KEY-15213-f24` of the courselab `KEY-15213-f24-lab1`; a courselab without `-` is a course of its own."""
    key = lab.removesuffix(courselab)
    return key + (courselab.rpartition("-")[0] or courselab)


def lane_of(share: Share, lab: str, courselab: str) -> Lane:
    """The lane of a courselab, stored as `lab`."""
    course = course_of(lab, courselab)
    rule = next((r for r in share.course if fnmatchcase(course, r.pattern)), None) or CourseShare(pattern="*")
    return Lane(rule.lane or course, rule.weight, rule.max_running, rule.max_running_each, rule.resubmission)


def submitter_of(job_name: str) -> str:
    """The address at the end of a job's name (`<course>_<assessment>_<version>_<address>`), or ""."""
    found = _VERSIONED.fullmatch(job_name) or _NAMED.fullmatch(job_name)
    return found[1] if found else ""


def priority_of(share: Share, job_name: str, asked: int | None) -> int:
    """What was asked for, or what the settings say of regrades; 0 is usual, more is earlier."""
    if asked is not None:
        return asked
    return share.regrade_priority if any(fnmatchcase(job_name, p) for p in share.regrades) else 0
