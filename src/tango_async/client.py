"""A client of Tango's REST API, ours or upstream's: its verbs, and what they take and give. Prints nothing.

Uses the forms that both answer: a slash at the end, POST for prealloc, an id that may be a digit string.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from .caller import RETRIES, Caller
from .errors import ClientError

_CHUNK = 256 * 1024

T = TypeVar("T")


class Job(msgspec.Struct, frozen=True):
    """A job as /jobs/ lists it."""

    id: int
    name: str
    assigned: bool = False
    retries: int = 0
    timeout: int | None = None
    trace: list[str] = msgspec.field(default_factory=list)
    output_file: str | None = msgspec.field(default="", name="outputFile")
    callback_url: str | None = msgspec.field(default=None, name="notifyURL")
    vm: dict[str, Any] = msgspec.field(default_factory=dict)
    position: int | None = None
    """Jobs that start before it, if it waits and the server tells."""
    eta_s: float | None = msgspec.field(default=None, name="etaSecs")
    eta_error_s: float | None = msgspec.field(default=None, name="etaErrorSecs")


class Info(msgspec.Struct, frozen=True):
    """Counters since the server started."""

    elapsed_secs: float = 0
    job_requests: int = 0
    job_retries: int = 0
    waitvm_timeouts: int = 0
    runjob_timeouts: int = 0
    copyin_errors: int = 0
    runjob_errors: int = 0
    copyout_errors: int = 0
    num_threads: int = 0
    unoffered: dict[str, int] = {}


class Pool(msgspec.Struct, frozen=True):
    """The machines of one image."""

    total: list[int | str] = msgspec.field(default_factory=list)
    free: list[int | str] = msgspec.field(default_factory=list)
    problem: str = ""
    """Why there are none; Tango does not say."""


class JobRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What addJob takes. `files` pairs an uploaded name with the name on the machine."""

    image: str
    job_name: str = msgspec.field(name="jobName")
    output_file: str
    files: list[tuple[str, str]]
    timeout_s: int | None = None
    max_kb: int | None = None
    callback_url: str | None = None
    disable_network: bool = False
    priority: int | None = None
    limiting_key: str | None = None
    vm: dict[str, float] = msgspec.field(default_factory=dict)
    """`cores`, and `memory` in MiB; Tango takes neither."""
    quiet: bool = False
    requires: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        fields: dict[str, Any] = msgspec.to_builtins(self)
        fields["files"] = [{"localFile": local, "destFile": dest} for local, dest in self.files]
        fields["timeout"] = fields.pop("timeout_s", 0)  # upstream wants it to be there; 0 is its default
        return fields


class Added(NamedTuple):
    id: int
    message: str


class TangoClient(Caller):
    """The verbs, of one server and with one key. All raise ClientError."""

    async def open(self, lab: str) -> dict[str, str]:
        """Makes the courselab. Returns the md5 of each of its files (upstream: always none)."""
        answer = await self.call("GET", self.path("open", lab))
        return _typed(answer.get("files") or {}, dict[str, str])

    async def upload(
        self,
        lab: str,
        name: str,
        source: Path | bytes,
        *,
        known: Mapping[str, str] | None = None,
        progress: Callable[[int], None] = lambda size: None,
    ) -> bool:
        """Sends a file under `name`, unless `known` (open's answer) says that it is there already.

        `progress` hears of every part that is done with. Returns whether anything was sent.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if known and known.get(name) == await asyncio.to_thread(md5_of, source):
            progress(size)
            return False
        headers = {"Filename": name, "Content-Length": str(size)}
        await self.call("POST", self.path("upload", lab), headers, lambda: _chunks(source, size, progress))
        return True

    async def add_job(self, lab: str, job: JobRequest, *, idempotency_key: str | None = None) -> Added:
        """Adds a job. It is repeated after a lost answer only with an `idempotency_key`.

        Our server takes the repetition for the same job. Upstream may run it twice, under one output.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = json.dumps(job.body()).encode()
        path = self.path("addJob", lab)
        answer = await self.call("POST", path, headers, lambda: body, retries=RETRIES if idempotency_key else 0)
        try:
            return Added(int(answer["jobId"]), str(answer.get("statusMsg", "")))
        except (KeyError, TypeError, ValueError) as e:
            raise self.unlike("addJob gave no job id") from e

    async def poll(self, lab: str, output_file: str) -> bytes | None:
        """The feedback; None while there is none."""
        answer = await self.request("GET", self.path("poll", lab, output_file))
        if answer.fields is None and answer.status == 200:
            return answer.body
        message = self.refusal(answer)
        if message is None or "not found" in message or "progress" in message:
            return None
        raise ClientError(message)

    async def partial_output(self, job_id: int) -> str:
        """What a running job has printed so far; empty for one that is not running."""
        answer = await self.request("GET", self.path("getPartialOutput", str(job_id)))
        if message := self.refusal(answer):
            if message.startswith("Key"):
                raise ClientError(message)
            return ""
        return str((answer.fields or {}).get("output") or "")

    async def jobs(self, *, dead: bool = False) -> list[Job]:
        """The jobs that wait or run, or those that ended."""
        answer = await self.call("GET", self.path("jobs", "1" if dead else "0"))
        return _typed(answer.get("jobs") or [], list[Job])

    async def info(self) -> Info:
        answer = await self.call("GET", self.path("info"))
        return _typed(answer.get("info") or {}, Info)

    async def pools(self, image: str = "") -> dict[str, Pool]:
        """The pools of all images, or of one."""
        answer = await self.call("GET", self.path("pool", *([image] if image else [])))
        return _typed(answer.get("pools") or {}, dict[str, Pool])

    async def prealloc(self, image: str, count: int, **machine: int | str) -> str:
        """Asks for a pool of `count` machines. Returns the server's words."""
        body = json.dumps(machine).encode()
        return await self._told(self.path("prealloc", image, str(count)), body)

    async def build(self, image: str, archive: Path, *, progress: Callable[[int], None] = lambda size: None) -> str:
        """Sends an image as `docker save` wrote it. Returns the server's words."""
        size = archive.stat().st_size
        headers = {"imageName": image, "Content-Length": str(size)}
        answer = await self.call("POST", self.path("build"), headers, lambda: _chunks(archive, size, progress))
        return str(answer.get("statusMsg", ""))

    async def cancel(self, lab: str, output_file: str) -> str:
        """Ends the newest job with that output. Returns the server's words."""
        return await self._told(self.path("cancel", lab, output_file))

    async def cancel_job(self, job_id: int) -> str | None:
        """Ends this job. Returns the server's words; None where jobs cannot be cancelled by id, as in Tango's forks."""
        answer = await self.request("POST", self.path("cancel", str(job_id)), {}, lambda: b"")
        if answer.fields is None and answer.status == 404:
            return None
        if message := self.refusal(answer):
            raise ClientError(message)
        return str((answer.fields or {}).get("statusMsg", ""))

    # -- with a key of the scope admin; Tango has none of it -------------------------------------

    async def callbacks(self, *, unsent: bool = False) -> list[dict[str, Any]]:
        """How it stands with the callbacks: to be delivered, given up, delivered lately."""
        answer = await self.call("GET", self.path("callbacks") + ("?unsent=1" if unsent else ""))
        return _typed(answer.get("callbacks"), list[dict[str, Any]])

    async def callback(self, job_id: int) -> dict[str, Any]:
        """One job's, with a line for each try."""
        answer = await self.call("GET", self.path("callbacks", str(job_id)))
        return _typed(answer.get("callbacks"), list[dict[str, Any]])[0]

    async def resend(self, job_id: int) -> str:
        """Has a callback delivered now, also once more. Returns the server's words."""
        return await self._told(self.path("callbacks", str(job_id)))

    async def erase(self, submitter: str) -> tuple[str, dict[str, int]]:
        """Erases a submitter's data. Returns the server's words and its counts; again is no error."""
        body = json.dumps({"submitter": submitter}).encode()
        answer = await self.call("POST", self.path("erase"), {}, lambda: body)
        return str(answer.get("statusMsg", "")), _typed(answer.get("erased"), dict[str, int])

    async def images(self) -> dict[str, Any]:
        """`images`, with the hosts that have them, and `orders`, with what has become of them on each host."""
        answer = await self.call("GET", self.path("images"))
        return {name: _typed(answer.get(name), list[dict[str, Any]]) for name in ("images", "orders")}

    async def move_image(self, what: str, image: str) -> str:
        """`what` is pull or push. Returns the server's words."""
        return await self._told(self.path("images", what, image))

    async def hosts(self) -> list[dict[str, Any]]:
        """The dispatchers, also those that are down."""
        answer = await self.call("GET", self.path("hosts"))
        return _typed(answer.get("hosts"), list[dict[str, Any]])

    async def pause(self, host: str) -> str:
        """Has dispatchers, by install or host name, claim nothing more. Returns the server's words."""
        return await self._order(host, "pause")

    async def resume(self, host: str) -> str:
        return await self._order(host, "resume")

    async def set_slots(self, host: str, slots: str) -> str:
        """`slots` is a number, or `default` for what the host's settings say."""
        return await self._order(host, "slots", slots)

    async def _order(self, host: str, *what: str) -> str:
        return await self._told(self.path("hosts", host, *what))

    async def _told(self, path: str, body: bytes = b"") -> str:
        """Posts an order. Returns the server's words."""
        answer = await self.call("POST", path, {}, lambda: body)
        return str(answer.get("statusMsg", ""))

    def lab_and_output(self, job: Job) -> tuple[str, str]:
        """The courselab and output name in a listed job's path, `courselabs/<key>-<lab>/output/<name>`."""
        parts = (job.output_file or "").split("/")
        for prefix in (f"{self.key}-", "KEY-"):  # ours does not show the key
            if len(parts) >= 4 and parts[-3].startswith(prefix):
                return parts[-3].removeprefix(prefix), parts[-1]
        raise ClientError(f"job {job.id}: its courselab cannot be told from {job.output_file}")


def md5_of(source: Path | bytes) -> str:
    """The md5 by which Tango knows a file."""
    if isinstance(source, bytes):
        return hashlib.md5(source, usedforsecurity=False).hexdigest()
    with source.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


async def _chunks(source: Path | bytes, size: int, progress: Callable[[int], None]) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        if source:
            yield source
            progress(size)
        return
    sent = 0
    with await asyncio.to_thread(source.open, "rb") as f:
        while chunk := await asyncio.to_thread(f.read, min(_CHUNK, size - sent)):
            yield chunk
            sent += len(chunk)
            progress(len(chunk))
    if sent != size:
        raise ClientError(f"{source} became shorter while it was sent")


def _typed(value: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as e:
        raise ClientError(f"the server does not answer as Tango does: {e}") from e
