"""How records look in Redis: msgpack with a version, and the hash fields of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgpack
import msgspec

from ..errors import QueueUnavailable
from ..machine import Credentials
from ..model import (
    RECORD_VERSION,
    CallbackRecord,
    CallbackState,
    Claim,
    DispatcherRecord,
    Due,
    Forecast,
    JobRecord,
    JobSpec,
    JobState,
    PoolOrder,
    TraceLine,
    Verdict,
)

T = TypeVar("T")


def pack(record: msgspec.Struct) -> bytes:
    return pack_plain(msgspec.to_builtins(record))


def pack_plain(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def unpack_plain(packed: bytes) -> Any:
    return msgpack.unpackb(packed, raw=False)


def _unpack(packed: bytes, kind: type[T]) -> T:
    plain = unpack_plain(packed)
    if plain.get("v", 0) > RECORD_VERSION + 1:
        raise QueueUnavailable(f"a record of version {plain['v']} was written by a newer release; upgrade this process")
    return msgspec.convert(plain, kind)


def job(job_id: int, fields: Mapping[bytes, bytes]) -> JobRecord:
    """A job from its hash."""
    get = fields.get
    verdict = get(b"verdict", b"").decode()
    return JobRecord(
        id=job_id,
        spec=_unpack(fields[b"spec"], JobSpec),
        state=JobState(fields[b"state"].decode()),
        added_ms=int(fields[b"added_ms"]),
        attempts=int(get(b"attempts", 0)),
        retries=int(get(b"retries", 0)),
        seq=int(get(b"seq", 0)),
        machine=get(b"machine", b"").decode(),
        vmms=get(b"vmms", b"").decode(),
        started_ms=int(get(b"started_ms", 0)),
        ended_ms=int(get(b"ended_ms", 0)),
        verdict=Verdict(verdict) if verdict else None,
        output_ref=get(b"output", b"").decode(),
        note=get(b"note", b"").decode(),
        trace=_lines(get(b"trace", b"")),
    )


def _lines(text: bytes) -> tuple[TraceLine, ...]:
    lines = (line.partition("|") for line in text.decode().split("\n") if line)
    return tuple(TraceLine(int(at), said) for at, _, said in lines)


def callback(job_id: int, fields: Sequence[bytes | None], due_ms: float | None, given_up: bool) -> CallbackRecord:
    """From {spec, cb, cb_tries, cb_log, cb_done_ms} of a job, and where it is in the outbox."""
    packed, url, tries, log, done_ms = fields
    if due_ms is not None:
        state = CallbackState.PENDING
    elif given_up:
        state = CallbackState.UNSENT
    else:
        state = CallbackState.DELIVERED if done_ms else CallbackState.NOT_ENDED
    return CallbackRecord(
        id=job_id,
        spec=_unpack(packed or b"", JobSpec),
        url=(url or b"").decode(),
        state=state,
        due_ms=int(due_ms or 0),
        tries=int(tries or 0),
        log=_lines(log or b""),
    )


def credentials(packed: bytes) -> Credentials:
    return msgspec.convert(unpack_plain(packed), Credentials)


def claim(found: Sequence[Any]) -> Claim:
    """From {id, seq, attempt, added_ms, spec, …}."""
    job_id, seq, attempt, added_ms, spec = found[:5]
    return Claim(id=job_id, seq=seq, attempt=attempt, added_ms=added_ms, spec=_unpack(spec, JobSpec))


def forecast(position: int, eta_ms: int, error_ms: int) -> Forecast:
    """-1 says that nobody knows."""
    eta_s, error_s = (None if ms < 0 else ms / 1000 for ms in (eta_ms, error_ms))
    return Forecast(position=position, eta_s=eta_s, error_s=error_s)


def dispatcher(packed: bytes, age_s: float) -> DispatcherRecord:
    return msgspec.structs.replace(_unpack(packed, DispatcherRecord), age_s=age_s)


def pool_order(packed: bytes) -> PoolOrder:
    return msgspec.convert(unpack_plain(packed), PoolOrder)


def due(found: Sequence[Any]) -> Due:
    """From {id, url, tries, attempt, verdict, output reference, note, ms since the end, output name}."""
    job_id, url, tries, attempt, verdict, output, note, since_end_ms, output_name = found
    return Due(
        id=job_id,
        url=url.decode(),
        tries=tries,
        attempt=attempt,
        verdict=Verdict(verdict.decode()),
        output_ref=output.decode(),
        note=note.decode(),
        since_end_s=since_end_ms / 1000,
        output_name=output_name.decode(),
    )
