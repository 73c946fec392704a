"""The one place where a client's word becomes something a path, a command or a header may hold.

Checked once, at the edge; everything behind it trusts the names it is given.
"""

from __future__ import annotations

import re
import unicodedata

from .errors import BadName
from .model import LABEL

MAX_NAME_BYTES = 255
"""Longest file name that Linux's file systems take."""

MAX_JOB_NAME_CHARS = 1024

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_IMAGE = re.compile(rf"(?:{_PART}:[0-9]{{1,5}}/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?", re.ASCII)

_SUBMITTER = re.compile(r"[^@\s/\x00-\x1f]+@[^@\s/_\x00-\x1f]+")

_LABEL = re.compile(LABEL, re.ASCII)

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What ends or breaks a line (Unicode's Cc, Zl and Zp)."""

RESERVED_PREFIX = ".tango"
"""Names the store and the bootstrap use for themselves."""


def file_name(raw: str, what: str) -> str:
    """One path component, as sent by a client. `what` names it in the error.

    Raises BadName for anything that is not exactly one component of valid text.
    """
    problem = _problem(raw)
    if problem:
        raise BadName(f"Bad {what}: {problem}")
    return raw


def _problem(raw: str) -> str | None:
    try:
        size = len(raw.encode())
    except UnicodeEncodeError:
        return "not valid UTF-8"
    if not raw:
        return "empty"
    if size > MAX_NAME_BYTES:
        return f"longer than {MAX_NAME_BYTES} bytes"
    if "/" in raw or raw in (".", ".."):
        return "not a plain file name"
    if _CONTROL.search(raw):
        return "control characters"
    if raw.startswith(RESERVED_PREFIX):
        return f"names that begin with {RESERVED_PREFIX} are reserved"
    return None


def image_name(raw: str) -> str:
    """A VM image's name. `:latest` is dropped, so that both spellings are one image."""
    if len(raw) > MAX_NAME_BYTES or not _IMAGE.fullmatch(raw):
        raise BadName("Bad image: expected a name such as autograding_image, group/name or name:tag")
    return raw.removesuffix(":latest")


def job_name(raw: str) -> str:
    """A job's name, fit to stand in one line of the feedback's header.

    Characters that would break the line or hide others are replaced by `?`, so that what follows
    still ends with the submitter's address, which Autolab looks for.
    """
    if len(raw) > MAX_JOB_NAME_CHARS:
        raise BadName(f"Bad jobName: longer than {MAX_JOB_NAME_CHARS} characters")
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in raw)


def submitter(raw: str) -> str:
    """A submitter's address. Raises BadName for what is none: names are looked for that begin with it."""
    if not _SUBMITTER.fullmatch(raw) or _problem(raw):
        raise BadName("Bad submitter: expected an address such as student@example.edu")
    return raw


def limiting_key(raw: str) -> str:
    """What the jobs of one submitter share; empty if they are nobody's."""
    problem = _problem(raw.replace("/", "-")) if raw else None
    if problem:
        raise BadName(f"Bad limiting_key: {problem}")
    return raw


def label(raw: str) -> str:
    """What a job requires of its host, and a host says that it has."""
    if not _LABEL.fullmatch(raw):
        raise BadName("Bad requires: expected words such as gpu or avx512 (a-z 0-9 . _ -), at most 32 long")
    return raw


def names_submitter(name: str, address: str) -> bool:
    """Whether a file's name says that it is of that submitter: `<address>_…`, as Autolab names them.

    Never a name in which the address is the end of a longer one: `_` and `-` may be part of an address.
    """
    return re.search(rf"(?:^|[\s,;:()\[\]<>\"]){re.escape(address)}_", name) is not None


def is_job_of(address: str, job_name: str, output_name: str) -> bool:
    """Whether a job is that submitter's.

    Autolab's jobs are `<course>_<assessment>_<version>_<address>`, their outputs `<address>_<version>_…`. The
    output decides if it names anybody; then the job's name, where a longer address ends with others, too.
    """
    if names_submitter(output_name, address):
        return True
    if re.match(r"\S+@\S+?_\d+_", output_name):
        return False
    versioned = re.fullmatch(r".*_\d+_(.+)", job_name)
    return versioned[1] == address if versioned else job_name.endswith("_" + address) or job_name == address
