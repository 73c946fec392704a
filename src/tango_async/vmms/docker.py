"""localDocker: a machine is a container of this host's engine, fed through its standard input, used once.

A container is created and started ahead of its job and waits in the bootstrap. Its output is
followed live through an attached stream while the dispatcher that made it lives. Whoever comes later
(a successor, or the same one after the engine restarted) reads the engine's log, which the `local`
driver keeps byte for byte, from the first byte on. The engine calls themselves are in engine.py, the
images in images.py, the script inside in bootstrap.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ..config import Settings
from ..errors import MachineLost, NotStarted, VmmsError, VmmsUnavailable
from ..model import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec, Usage
from . import bootstrap
from .engine import Attached, Ending, Engine, State
from .images import Images

T = TypeVar("T")

log = logging.getLogger(__name__)

INSTALL, OWNER, NONCE, SPEC = (f"tango-async.{what}" for what in ("install", "owner", "nonce", "spec"))
"""The labels of every container that is made here."""

BEGIN_POLL_S = 0.2
"""Between two looks at a machine that has not begun within a second."""

POLL_S = 5.0
"""A waiting call is given up and the state asked after so long: over a cut network it never returns."""

ANSWER_S = 10.0
"""An engine that does not tell a container's state for so long counts as away."""

AWAY_S = 90.0
"""An engine that is away for longer, as no restart takes, is an error."""

UNFED_S = 10.0
"""A machine that says nothing for so long, with all sent and its engine there, never begins: an engine died
with a part of the files, and the container waits for the rest, and for their end, that nobody sends."""

UNREAD_S = 1.0
"""Output that nobody reads for so long is left to the log: a full pipe would hold up the job."""

LOG = {"Type": "local", "Config": {"max-size": "256m", "max-file": "1", "compress": "false"}}
"""Never rotated, since dockerd 20.10 loses and repeats bytes when a log is followed across a rotation.

Each line costs some 30 bytes beside its text, so that output_stop_bytes fit in lines of a usual length."""

HEAD_BYTES = 512
"""Enough of the output to find the mark, or to say why there is none."""

FAILED = range(bootstrap.FAILED_FIRST, bootstrap.FAILED_LAST + 1)

UNKNOWN_END = 255
"""The engine's code for a container that it found dead; no bootstrap ends with it."""

OVERHEAD = 2
"""Processes of the bootstrap itself: sh and timeout."""


@dataclass(slots=True)
class _Live:
    """The streams of a machine that this object made."""

    stdin: Attached
    output: Attached
    ending: Ending
    read: bool = False
    """Somebody took the output, or it was given up: it can be had from the log only."""

    async def begins(self) -> bool:
        """Whether the first output comes before long; it can still be read."""
        if self.read:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(UNREAD_S):
                return await self.output.begins()
        return False

    async def drop_output(self) -> None:
        self.read = True
        await self.output.close()
        self.ending.close()

    async def close(self) -> None:
        await self.stdin.close()
        await self.drop_output()


@dataclass(slots=True)
class _Sent:
    """Bytes that went out, to be known again."""

    size: int = 0
    checksum: int = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self.checksum = zlib.crc32(data, self.checksum)


class LocalDocker:
    """The back-end over the engine of `settings.docker.host`, or of /var/run/docker.sock."""

    name = "localDocker"
    capabilities = Capabilities(adopt=True, prestart=True, load_images=True, network=True, cpusets=True)

    def __init__(self, settings: Settings, install: str) -> None:
        self._settings = settings.docker
        self._install = install
        self._prefix = f"tango-{hashlib.sha256(install.encode()).hexdigest()[:8]}"
        self._engine = Engine(settings.docker.host)
        self._images = Images(self._engine, self._throwaway)
        self._live: dict[str, _Live] = {}
        self._unwatched: set[str] = set()
        """Machines whose engine may have been away while they ran."""

    async def open(self) -> None:
        await self._engine.open()
        if self._settings.network == "bridge":
            log.warning(
                "docker.network is the engine's default bridge: jobs with a network reach each other and this host"
            )

    async def close(self) -> None:
        for name in list(self._live):
            await self._live.pop(name).close()
        await self._engine.close()

    async def get_images(self) -> list[str]:
        return await self._images.names()

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        await self._images.load(name, archive)

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        image = await self._images.find(spec.image)
        user = await self._images.user(image, owner)
        machine = Machine(id=self._name(), spec=spec, nonce=secrets.token_hex(16), owner=owner)
        await self._engine.create(machine.id, self._container(machine, image, user))
        try:
            await self._start(machine)
        except VmmsError:
            await self._engine.remove(machine.id)
            raise
        return machine

    async def _start(self, machine: Machine) -> None:
        """With all streams attached before the first process can say anything."""
        async with AsyncExitStack() as opened:
            stdin = await self._engine.attach(machine.id, stdin=True)
            opened.push_async_callback(stdin.close)
            output = await self._engine.attach(machine.id, output=True)
            opened.push_async_callback(output.close)
            ending = await self._engine.ending(machine.id)
            opened.callback(ending.close)
            await self._engine.start(machine.id)
            opened.pop_all()
        self._live[machine.id] = _Live(stdin, output, ending)

    async def wait_vm(self, machine: Machine) -> None:
        state = await self._engine.state(machine.id)
        if not state.running:
            raise MachineLost(f"the machine ended with status {state.code} before it had a job")

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        # The pids cgroup counts this job's processes only; RLIMIT_NPROC counts those of all jobs of its uid.
        await self.feed(machine, bootstrap.archive(files, machine.nonce, limits, processes=0))
        await self._until_begun(machine)

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        """Sends the bytes to the machine's input and ends it, also when `chunks` fails or the call is cancelled."""
        live = self._live.get(machine.id)
        if live is None:
            raise MachineLost("the input of a machine can be fed only by the one that made it")
        try:
            async for chunk in chunks:
                await live.stdin.write(chunk)
        except MachineLost:
            return  # it has ended: run_job tells why
        finally:
            await live.stdin.close()
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _until_begun(self, machine: Machine) -> None:
        """Returns when the machine says something, or has ended. Raises NotStarted if it never will.

        Before that a job's time does not run, or a machine without its files would look like a program
        that is slow.
        """
        loop = asyncio.get_running_loop()
        live = self._live.get(machine.id)
        if live is not None and await live.begins():
            return
        there_since = loop.time()
        while (await self._state(machine)).running:
            try:
                if await self._has_begun(machine):
                    return
            except (VmmsUnavailable, TimeoutError):
                there_since = loop.time()
            if loop.time() - there_since > UNFED_S:
                await self.destroy_vm(machine)
                raise NotStarted("the files did not arrive")
            await asyncio.sleep(BEGIN_POLL_S)

    async def _has_begun(self, machine: Machine) -> bool:
        async with asyncio.timeout(ANSWER_S), aclosing(self._engine.logs(machine.id, follow=False)) as chunks:
            async for _ in chunks:
                return True
        return False

    async def run_job(self, machine: Machine) -> Exit:
        patience = UNREAD_S
        while True:
            watched = True
            try:
                async with asyncio.timeout(patience):
                    await self._engine.wait(machine.id)
            except TimeoutError:
                await self._leave_unread(machine)
            except VmmsUnavailable:
                watched = False
                self._unwatched.add(machine.id)
            state = await self._state(machine)
            if not state.running:
                return await self._ended(machine, state, watched=watched)
            patience = POLL_S

    async def _leave_unread(self, machine: Machine) -> None:
        live = self._live.get(machine.id)
        if live is not None and not live.read:
            await live.drop_output()

    async def _ended(self, machine: Machine, state: State, *, watched: bool) -> Exit:
        if not watched or state.code == UNKNOWN_END:
            # An engine without live-restore takes its containers with it; one with it has lost the last output.
            raise MachineLost("the machine ended while its engine was away")
        if machine.id in self._unwatched and not state.out_of_memory and state.code not in FAILED:
            await self._check_whole(machine)
        # Only a script that came to its end has status 0; of the others the first line tells.
        if state.code != 0 or state.status == "created":
            await self._check_started(machine, state)
        return bootstrap.ended(state.code, out_of_memory=state.out_of_memory)

    async def _check_whole(self, machine: Machine) -> None:
        """Nobody watched it all the time: its engine may have been away as it ended."""
        last, tail = bootstrap.end_mark(machine.nonce), b""
        async with aclosing(self._engine.logs(machine.id, follow=False)) as chunks:
            async for chunk in chunks:
                tail = (tail + chunk)[-HEAD_BYTES:]
        if last not in tail:
            raise MachineLost("the end of its output was lost with its engine")

    async def _check_started(self, machine: Machine, state: State) -> None:
        said = b""
        async with aclosing(self._engine.logs(machine.id, follow=False)) as chunks:
            async for chunk in chunks:
                said += chunk
                if len(said) >= HEAD_BYTES:
                    break
        if not said or state.code in FAILED:
            raise NotStarted(bootstrap.why_not_started(state.code, said))
        # Else it began: without the mark this is the output of a program whose beginning the log has given up.

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        async with aclosing(self._output(machine)) as output:
            async for chunk in bootstrap.after_mark(output, machine.nonce):
                yield chunk
            async for _ in output:
                pass  # after_mark stops where the mark is missing; the end tells whether it was lost

    async def _output(self, machine: Machine) -> AsyncGenerator[bytes, None]:
        """All bytes, each once, over restarts of the engine."""
        sent = _Sent()
        live = self._live.get(machine.id)
        if live is not None and not live.read:
            live.read = True
            try:
                async with aclosing(live.output.chunks()) as chunks:
                    async for chunk in chunks:
                        sent.add(chunk)
                        yield chunk
                if await self._whole(live):
                    return
            finally:
                await live.drop_output()
        while True:
            state = await self._state(machine)
            with suppress(VmmsUnavailable):
                async with aclosing(self._logged(machine, state, sent)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if not state.running:
                    return

    async def _whole(self, live: _Live) -> bool:
        """Whether the stream ended because the container did."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UNREAD_S):
                return await live.ending.kept()
        return False

    async def _logged(self, machine: Machine, state: State, sent: _Sent) -> AsyncGenerator[bytes, None]:
        """What the log holds after the bytes already sent, followed while the machine runs.

        Raises MachineLost if it does not begin with those: the engine died before it had written them,
        or the log became too long and gave up its beginning.
        """
        head = _Sent()
        mark = bootstrap.mark(machine.nonce)
        begin = b""
        async with aclosing(self._engine.logs(machine.id, follow=state.running)) as chunks:
            async for chunk in chunks:
                begin += chunk[: len(mark) - len(begin)]
                repeated = chunk[: sent.size - head.size]
                head.add(repeated)
                if rest := chunk[len(repeated) :]:
                    if head != sent:
                        break
                    sent.add(rest)
                    head.add(rest)
                    yield rest
        torn = head != sent and (head.size == sent.size or not state.running)
        given_up = not state.running and state.code not in FAILED and begin not in (b"", mark)
        if torn or given_up:
            raise MachineLost("the engine's log does not hold the whole output")

    async def usage(self, machine: Machine) -> Usage | None:
        return await self._engine.usage(machine.id)

    async def destroy_vm(self, machine: Machine) -> None:
        live = self._live.pop(machine.id, None)
        if live is not None:
            await live.close()
        await self._engine.remove(machine.id)
        self._unwatched.discard(machine.id)

    async def get_vms(self) -> list[Machine]:
        listed = await self._engine.containers(f"{INSTALL}={self._install}")
        names = ((container["Names"] or [container["Id"]])[0].removeprefix("/") for container in listed)
        return [_machine(name, container["Labels"]) for name, container in zip(names, listed, strict=True)]

    async def adopt(self, machine: Machine) -> None:
        live = self._live.pop(machine.id, None)
        if live is not None:
            await live.close()
        await self._engine.state(machine.id)
        self._unwatched.add(machine.id)
        await self._until_begun(machine)

    async def _state(self, machine: Machine) -> State:
        """Asked again while the engine is away, as it is while it restarts."""
        return await _patiently(lambda: self._engine.state(machine.id))

    async def _throwaway(self, image: str, owner: str) -> str:
        """A container to look into. Labelled as a machine, so that one left by a cancelled look is found."""
        spec = MachineSpec(image=image, network=False, cores=1, memory_bytes=0, processes=0, disk_bytes=0)
        machine = Machine(id=self._name(), spec=spec, nonce=secrets.token_hex(16), owner=owner)
        config = {"Image": image, "Entrypoint": ["/bin/false"], "Labels": self._labels(machine)}
        await self._engine.create(machine.id, config | {"HostConfig": {"NetworkMode": "none"}})
        return machine.id

    def _name(self) -> str:
        return f"{self._prefix}-{secrets.token_hex(8)}"

    def _labels(self, machine: Machine) -> dict[str, str]:
        spec = msgspec.json.encode(machine.spec).decode()
        return {INSTALL: self._install, OWNER: machine.owner, NONCE: machine.nonce, SPEC: spec}

    def _container(self, machine: Machine, image: str, user: str) -> dict[str, Any]:
        """What the engine is to make: everything an image could say about how it is run is overridden."""
        spec = machine.spec
        shell, *arguments = bootstrap.command(machine.nonce)
        names = {"HOME": bootstrap.HOME, "USER": "autograde", "LOGNAME": "autograde", "LANG": "C.UTF-8"}
        uid, gid = user.split(":")
        scratch = f"rw,exec,nosuid,nodev,size={spec.disk_bytes}"
        host = {
            "NetworkMode": self._settings.network if spec.network else "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": spec.processes + OVERHEAD,
            "Memory": spec.memory_bytes,
            "MemorySwap": spec.memory_bytes,
            "NanoCpus": int(min(spec.cores, self._engine.cores) * 10**9),
            "CpusetCpus": spec.cpuset,
            "IpcMode": "private",
            "LogConfig": LOG,
            "ReadonlyRootfs": True,
            "Tmpfs": {
                bootstrap.HOME: f"{scratch},uid={uid},gid={gid},mode=0700",
                "/tmp": f"{scratch},mode=1777",  # noqa: S108 - inside the container
                "/var/tmp": f"{scratch},mode=1777",  # noqa: S108
            },
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": 4096, "Hard": 4096}],
        }
        if self._settings.runtime:
            host["Runtime"] = self._settings.runtime
        return {
            "Image": image,
            "Entrypoint": [shell],
            "Cmd": arguments,
            "User": user,
            "Env": [f"{name}={value}" for name, value in names.items()],
            # Not the image's: one below the tmpfs would be made there by the engine, as root.
            "WorkingDir": "/",
            "Healthcheck": {"Test": ["NONE"]},
            "Labels": self._labels(machine),
            **dict.fromkeys(("OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"), True),
            "HostConfig": host,
        }


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    loop = asyncio.get_running_loop()
    give_up = loop.time() + AWAY_S
    pause = 0.05
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await call()
        except (VmmsUnavailable, TimeoutError) as e:
            if loop.time() > give_up:
                raise VmmsUnavailable(f"the Docker engine has been away for {AWAY_S:.0f} s") from e
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)


def _machine(name: str, labels: dict[str, str]) -> Machine:
    """From a container's labels; a spec of another version is still a machine, to be removed."""
    try:
        spec = msgspec.json.decode(labels.get(SPEC, ""), type=MachineSpec)
    except msgspec.MsgspecError:
        spec = MachineSpec(image="", network=False, cores=0, memory_bytes=0, processes=0, disk_bytes=0)
    return Machine(id=name, spec=spec, nonce=labels.get(NONCE, ""), owner=labels.get(OWNER, ""))
