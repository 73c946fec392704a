"""What clients send: every name in it, and nothing of what it means.

Typed, and tolerant as Tango's clients need it: null for what is not given, unknown fields. The names come from
Autolab's client.
"""

from __future__ import annotations

from typing import Annotated, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct, field

from ..errors import BadRequest

T = TypeVar("T", bound=Struct)


class InputEntry(Struct, frozen=True):
    """One of addJob's `files`."""

    local: str = field(name="localFile")
    dest: str = field(name="destFile")


Number = int | float | str | None
"""Tango's clients send numbers as digits, too."""


class VmRequest(Struct, frozen=True):
    """addJob's `vm`. `memory` is in MiB, as /jobs/ shows it."""

    cores: Number = None
    memory: Number = None
    quiet: bool | None = None


class LimitsRequest(Struct, frozen=True):
    """addJob's `limits`. Sizes are in MiB."""

    processes: Number = None
    file_mb: Number = None
    disk_mb: Number = None


class AddJob(Struct, frozen=True):
    """addJob's body."""

    image: str | None = None
    files: list[InputEntry] | None = None
    output_file: str | None = None
    timeout: int | float | None = None
    max_kb: int | float | None = None
    callback_url: str | None = None
    notify_url: str | None = field(default=None, name="notifyURL")
    job_name: str | None = field(default=None, name="jobName")
    disable_network: bool | None = None
    priority: int | float | None = None
    limiting_key: str | None = None
    vm: VmRequest | None = None
    limits: LimitsRequest | None = None
    quiet: bool | None = None
    """Run on cores that nothing else uses meanwhile; also taken from `vm`."""
    requires: list[str] | None = None
    """Labels that the host has to have."""
    ami: str | None = None
    instance_type: str | None = field(default=None, name="instanceType")
    security_group: str | None = None
    access_key_id: str | None = field(default=None, name="accessKeyId")
    access_key: str | None = field(default=None, name="accessKey")

    def __repr__(self) -> str:
        return "AddJob(…)"


class Prealloc(Struct, frozen=True):
    """prealloc's body. `memory` is in MiB; 0 is as much as a job has."""

    vmms: str | None = None
    cores: Annotated[float, Meta(ge=0, le=4096)] | None = None
    memory: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    network: bool | None = None


class EraseRequest(Struct, frozen=True):
    """erase's body."""

    submitter: str


def read_json(body: bytes, kind: type[T]) -> T:
    """A body of JSON, whatever its content type said. Raises BadRequest, naming the offending field."""
    try:
        if not body.isascii():
            body.decode()
        return msgspec.json.decode(body, type=kind)
    except UnicodeDecodeError as e:
        raise BadRequest("The body is not valid UTF-8") from e
    except RecursionError as e:
        raise BadRequest("Malformed JSON: nested too deeply") from e
    except msgspec.ValidationError as e:
        raise BadRequest(_explain(e)) from e
    except msgspec.DecodeError as e:
        raise BadRequest(f"Malformed JSON: {e}") from e


def read_json_or_form(body: bytes, kind: type[T]) -> T:
    """A body of JSON, a form, or none: Autolab sends prealloc's numbers as a form."""
    if not body.strip():
        return kind()
    if body.lstrip()[:1] in b"{[":
        return read_json(body, kind)
    try:
        return msgspec.convert(dict(parse_qsl(body.decode())), kind, strict=False)
    except UnicodeDecodeError as e:
        raise BadRequest("The body is not valid UTF-8") from e
    except msgspec.ValidationError as e:
        raise BadRequest(_explain(e)) from e


def _explain(error: msgspec.ValidationError) -> str:
    text, _, where = str(error).partition(" - at `$")
    text = text.replace("`", "")
    where = where.strip("`.")
    return f"{where}: {text}" if where else f"The body: {text}"
