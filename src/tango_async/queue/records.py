"""How records look in Redis: msgpack with a version, and the hash fields of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgpack
import msgspec

from ..errors import QueueUnavailable
from ..model import RECORD_VERSION, Claim, DispatcherRecord, Due, JobRecord, JobSpec, JobState, TraceLine, Verdict

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
        started_ms=int(get(b"started_ms", 0)),
        ended_ms=int(get(b"ended_ms", 0)),
        verdict=Verdict(verdict) if verdict else None,
        output_ref=get(b"output", b"").decode(),
        note=get(b"note", b"").decode(),
        trace=tuple(_trace(get(b"trace", b"").decode())),
    )


def _trace(text: str) -> list[TraceLine]:
    lines = (line.partition("|") for line in text.split("\n") if line)
    return [TraceLine(int(at), said) for at, _, said in lines]


def claim(found: Sequence[Any]) -> Claim:
    """From {id, seq, attempt, added_ms, spec, …}."""
    job_id, seq, attempt, added_ms, spec = found[:5]
    return Claim(id=job_id, seq=seq, attempt=attempt, added_ms=added_ms, spec=_unpack(spec, JobSpec))


def dispatcher(packed: bytes, age_s: float) -> DispatcherRecord:
    return msgspec.structs.replace(_unpack(packed, DispatcherRecord), age_s=age_s)


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
