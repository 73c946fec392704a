"""The file of keys: what each one may do, in TOML. docs/keys.md describes it; keys.py asks it.

[keys.autolab]
key = "…"                     # or sha256 = "…", in hex, so that the file is no secret
scopes = ["submit"]           # or "admin", which may do everything
courselabs = ["15213-"]       # only courselabs that begin with one of these; without it: any
rate_per_s = 20               # requests, on average; without it: any number
burst = 100                   # … and at once
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Annotated

import msgspec
from msgspec import Meta

from ..config import key_problem
from ..errors import ConfigError

MAX_BYTES = 1 << 20

Prefix = Annotated[str, Meta(min_length=1, max_length=255)]


class Scope(StrEnum):
    SUBMIT = "submit"
    """Everything that Autolab needs, for the key's own courselabs and jobs."""
    ADMIN = "admin"
    """Everything."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    key: str | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = (Scope.SUBMIT,)
    courselabs: Annotated[tuple[Prefix, ...], Meta(min_length=1)] | None = None
    rate_per_s: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """What one key may do."""

    name: str
    """What it is called in logs; never the key."""
    digest: bytes
    word: str | None
    """The key itself; None if only its digest is known."""
    admin: bool
    courselabs: tuple[str, ...] = ()
    """Empty: any."""
    rate_per_s: float = math.inf
    burst: int = 0


def digest_of(word: str) -> bytes:
    return sha256(word.encode(errors="surrogateescape")).digest()


def of_settings(keys: Iterable[str]) -> list[Rights]:
    """Keys that may do everything."""
    return [Rights(f"http.keys number {n}", digest_of(key), key, admin=True) for n, key in enumerate(keys, 1)]


def parse(text: str) -> list[Rights]:
    """Raises ConfigError, which names the offending key by its name and shows none."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"it is no TOML: {_where(e)}") from None
    entries = tables.pop("keys", None)
    if tables:
        raise ConfigError("it holds something else than tables [keys.NAME]")
    if not isinstance(entries, dict) or not entries:
        raise ConfigError("it holds no key")
    return [_rights(name, entry) for name, entry in entries.items()]


def _where(error: tomllib.TOMLDecodeError) -> str:
    """Only where it is broken: the text itself may quote a key."""
    return str(error).rpartition("(")[2].rstrip(")")


def _rights(name: str, table: object) -> Rights:
    try:
        entry = msgspec.convert(table, _Entry)
    except msgspec.ValidationError as e:
        raise ConfigError(f"keys.{name}: {e}") from None
    if (entry.key is None) == (entry.sha256 is None):
        raise ConfigError(f"keys.{name}: give either key or sha256")
    if entry.key is not None and (problem := key_problem(entry.key)):
        raise ConfigError(f"keys.{name}: {problem}")
    if entry.burst is not None and entry.rate_per_s is None:
        raise ConfigError(f"keys.{name}: burst without rate_per_s")
    return Rights(
        name=f"keys.{name}",
        digest=digest_of(entry.key) if entry.key is not None else bytes.fromhex(entry.sha256 or ""),
        word=entry.key,
        admin=Scope.ADMIN in entry.scopes,
        courselabs=entry.courselabs or (),
        rate_per_s=entry.rate_per_s or math.inf,
        burst=entry.burst or math.ceil(entry.rate_per_s or 1),
    )


def require_apart(keys: Iterable[Rights]) -> None:
    """Refuses two entries of one key, and keys that alias: a + b-c and a-b + c would share a directory.

    A key of which only the digest is known cannot be seen to be the longer of two; `parts_of` can when it is sent.
    """
    known = list(keys)
    names: dict[bytes, str] = {}
    for one in known:
        if one.digest in names:
            raise ConfigError(f"{names[one.digest]} and {one.name} are the same key")
        names[one.digest] = one.name
    for one in known:
        for digest in map(digest_of, parts_of(one.word or "")):
            if digest in names:
                raise ConfigError(
                    f"{names[digest]} and {one.name} alias: one is the other plus '-…', "
                    "so that two courselabs could share a directory"
                )


def parts_of(word: str) -> list[str]:
    """What stands before each `-`: a key that is one of these aliases the word."""
    return [word[:n] for n, c in enumerate(word) if c == "-"]
