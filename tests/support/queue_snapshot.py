"""All that Redis holds of one queue, read at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tango_async.queue.redis import Queue


@dataclass
class Snapshot:
    """All keys at one moment."""

    now_ms: int
    values: dict[str, Any]
    expires: dict[str, bool]

    def zset(self, name: str) -> dict[int, int]:
        return {int(i): int(float(score)) for i, score in self.values.get(name, ())}

    def numbers(self, name: str) -> set[int]:
        return {int(i) for i in self.values.get(name, ())}

    def hash(self, name: str) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.values.get(name, {}).items() if k != b"spec"}

    def value(self, name: str) -> bytes:
        return bytes(self.values.get(name, b""))


KINDS: dict[tuple[Any, ...], str] = {
    ("GET",): "ids seq same live vclock mean_ms",
    ("LRANGE", 0, -1): "bell control",
    ("SMEMBERS",): "running",
    ("ZRANGE", 0, -1, "WITHSCORES"): "queued wait parked lanes mine held dead outbox unsent",
    ("HGETALL",): "server job pins machines claim outputs counters lane heads classes",
}
READ = {name: words for words, names in KINDS.items() for name in names.split()}


async def snapshot(queue: Queue, prefix: str) -> Snapshot:
    keys = await queue._server.command("KEYS", f"{prefix}*")
    names = [key.decode().removeprefix(prefix) for key in keys]
    reads = [READ[name.partition(":")[0]] for name in names]
    found = await queue._server.commands(
        [
            *((read[0], key, *read[1:]) for key, read in zip(keys, reads, strict=True)),
            *(("PTTL", key) for key in keys),
            ("TIME",),
        ]
    )
    seconds, micros = found.pop()
    values, expires = found[: len(keys)], [ttl > 0 for ttl in found[len(keys) :]]
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    return Snapshot(now_ms, dict(zip(names, values, strict=True)), dict(zip(names, expires, strict=True)))
