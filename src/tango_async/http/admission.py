"""What becomes a job: addJob's words checked, its inputs held, its limits set.

All reasons to refuse are told at once, in Tango's words where Tango has any.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv6Address

from .. import names, shares
from ..config import LEAST_PRIORITY, MOST_PRIORITY
from ..destinations import allowance
from ..errors import BadName, NotFound, Rejected
from ..files.base import Pin
from ..machine import CloudChoice, Limits
from ..model import JobSpec, class_name
from . import clouds, sizes
from .requests import AddJob, InputEntry
from .service import Lab, Service

MAKEFILE = "Makefile"

RIVALS = ("GNUmakefile", "makefile")
"""Names that GNU make prefers: a student's file of such a name would be run in place of the instructor's."""

UNOFFERED = "No living dispatcher offers the image{} now; the job waits until one does"

_URI = re.compile(
    r"""https?://
    (?: (?: [\w.~!$&'()*+,;=:-] | %[0-9a-f]{2} )* @ )?
    (?: (?: [\w.~-] | %[0-9a-f]{2} )+ | \[ (?P<ipv6> [0-9a-f:.]+ ) \] )
    (?: : [0-9]{1,5} )?
    (?: / (?: [\w.~!$&'()*+,;=:@/-] | %[0-9a-f]{2} )* )?
    (?: \? (?: [\w.~!$&'()*+,;=:@/?-] | %[0-9a-f]{2} )* )?
    (?: \# (?: [\w.~!$&'()*+,;=:@/?-] | %[0-9a-f]{2} )* )?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
"""No laxer than the URI parser of Autolab's job pages: one URI that it refuses breaks the whole list."""

MAX_URI = 4096

MAX_LABELS = 8
"""Most labels that one job requires."""

MAX_FILES = 1000
"""Most inputs of one job: each is a link to be made before addJob is answered."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """addJob's words, checked."""

    name: str
    image: str
    output_name: str
    files: list[tuple[str, str]]
    callback_url: str | None
    submitter: str
    priority: int
    limits: Limits
    quiet: bool
    cloud: CloudChoice | None
    requires: tuple[str, ...]
    notes: list[str]


async def admit(service: Service, lab: Lab, asked: AddJob) -> JobSpec:
    """The job, its inputs pinned. Raises Rejected."""
    wanted = await _check(service, asked)
    try:
        pin = await service.store.pin(lab.stored, wanted.files)
    except NotFound as e:
        raise Rejected(str(e).splitlines()) from e
    size, most = sum(f.size for f in pin.files), wanted.limits.disk_bytes
    if size > most:
        await service.store.unpin(pin.id)
        raise Rejected([f"Input files are too large: {size} bytes, and a job's disk has {most}"])
    return _spec(lab, asked, wanted, pin)


def fingerprint(lab: Lab, body: bytes, spec: JobSpec, idempotency_key: str | None) -> str:
    """What two requests share if they mean the same job: Autolab repeats a slow addJob up to four times."""
    parts = [lab.stored.encode()]
    if idempotency_key is not None:
        parts += [b"key", idempotency_key.encode(errors="surrogateescape")]
    else:
        parts += [b"body", body, *(f.md5.encode() for f in spec.files)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


async def _check(service: Service, asked: AddJob) -> _Wanted:
    reasons: list[str] = []
    name = image = output_name = ""
    try:
        name = names.job_name(asked.job_name or "")
    except BadName as e:
        reasons.append(str(e))
    else:
        if not name:
            reasons.append("Missing job.name")
    if not asked.image:
        reasons.append("Missing job.vm.image")
    else:
        try:
            image = names.image_name(asked.image)
        except BadName as e:
            reasons.append(str(e))
        else:
            if not await service.fleet.may_run(image):
                reasons.append(f"Image not found: {asked.image}")
    if not asked.output_file:
        reasons.append("Missing job.outputFile")
    else:
        output_name = _name(asked.output_file, "output_file", reasons)
    files = _files(asked.files or [], reasons)
    callback_url = asked.callback_url or asked.notify_url or None
    if callback_url and not _is_uri(callback_url):
        reasons.append("Bad callback_url: expected an absolute http or https URI")
    elif callback_url and not allowance(service.settings.callbacks.allow)(callback_url):
        reasons.append("Bad callback_url: callbacks may not go to that host")
    submitter = shares.submitter_of(name) if asked.limiting_key is None else _key(asked.limiting_key, reasons)
    if asked.priority is not None and not _is_priority(asked.priority):
        reasons.append(f"Bad priority: expected a whole number from {LEAST_PRIORITY} to {MOST_PRIORITY}")
    cloud = clouds.choice(asked, reasons)
    requires = _labels(asked.requires or [], reasons)
    limits, notes = sizes.limits(asked, service.settings.limits.of(image), reasons)
    if reasons:
        raise Rejected(reasons)
    quiet = bool(asked.quiet or (asked.vm and asked.vm.quiet))
    if not service.fleet.offered(class_name(image, quiet=quiet, labels=requires)):
        wanted = " on quiet cores" * quiet + (f" on a host with {', '.join(requires)}" if requires else "")
        notes.insert(0, UNOFFERED.format(wanted))
    asked_priority = None if asked.priority is None else int(asked.priority)
    priority = shares.priority_of(service.settings.share, name, asked_priority)
    return _Wanted(
        name=name,
        image=image,
        output_name=output_name,
        files=files,
        callback_url=callback_url,
        submitter=submitter,
        priority=priority,
        limits=limits,
        quiet=quiet,
        cloud=cloud,
        requires=requires,
        notes=notes,
    )


def _is_priority(asked: float) -> bool:
    return LEAST_PRIORITY <= asked <= MOST_PRIORITY and asked == int(asked)


def _key(raw: str, reasons: list[str]) -> str:
    try:
        return names.limiting_key(raw)
    except BadName as e:
        reasons.append(str(e))
        return ""


def _labels(raw: list[str], reasons: list[str]) -> tuple[str, ...]:
    if len(raw) > MAX_LABELS:
        reasons.append(f"Bad requires: at most {MAX_LABELS} labels")
        return ()
    try:
        return tuple(sorted({names.label(label) for label in raw}))
    except BadName as e:
        reasons.append(str(e))
        return ()


def _is_uri(raw: str) -> bool:
    parts = _URI.fullmatch(raw) if len(raw) <= MAX_URI else None
    if parts is None:
        return False
    try:
        IPv6Address(parts["ipv6"] or "::1")
    except ValueError:
        return False
    return True


def _name(raw: str, what: str, reasons: list[str]) -> str:
    try:
        return names.file_name(raw, what)
    except BadName as e:
        reasons.append(str(e))
        return ""


def _files(entries: list[InputEntry], reasons: list[str]) -> list[tuple[str, str]]:
    if len(entries) > MAX_FILES:
        reasons.append(f"Too many input files: at most {MAX_FILES}")
        return []
    before = len(reasons)
    files = [(_name(e.local, "localFile", reasons), _name(e.dest, "destFile", reasons)) for e in entries]
    if len(reasons) > before:
        return []
    reasons += [f"{dest} would be read instead of the Makefile" for _, dest in files if dest in RIVALS]
    times = Counter(dest for _, dest in files)
    makefiles = times.pop(MAKEFILE, 0)
    if makefiles == 0:
        reasons.append("Missing Makefile in input files.")
    elif makefiles > 1:
        reasons.append("More than one Makefile in input files.")
    reasons += [f"More than one input file has the destFile {dest}" for dest, n in times.items() if n > 1]
    return files


def _spec(lab: Lab, asked: AddJob, wanted: _Wanted, pin: Pin) -> JobSpec:
    return JobSpec(
        name=wanted.name,
        lab=lab.stored,
        courselab=lab.courselab,
        image=wanted.image,
        output_name=wanted.output_name,
        pin=pin.id,
        files=pin.files,
        limits=wanted.limits,
        network=not asked.disable_network,
        submitter=wanted.submitter,
        priority=wanted.priority,
        callback_url=wanted.callback_url,
        notes=tuple(wanted.notes),
        quiet=wanted.quiet,
        cloud=wanted.cloud,
        requires=wanted.requires,
    )
