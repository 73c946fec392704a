"""localDocker: a machine is a container of this host's engine, fed through its standard input, used once.

A container is created and started ahead of its job and waits in the bootstrap. How its output comes
back and its end is told is in outputs.py; the engine calls themselves are in engine.py, the images in
images.py, the script inside in bootstrap.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import resource
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

import msgspec

from ..config import Docker, Settings
from ..errors import MachineLost, NotStarted, VmmsError, VmmsUnavailable
from ..machine import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec, Usage
from . import bootstrap
from .engine import Engine
from .engine_outputs import EngineOutputs
from .engine_streams import Attached
from .host_outputs import HostOutputs
from .images import Images
from .outputs import NO_SPEC, Channel, Outputs, state_of

log = logging.getLogger(__name__)

INSTALL, OWNER, NONCE, SPEC, HOST = (f"tango-async.{what}" for what in ("install", "owner", "nonce", "spec", "host"))
"""The labels of every container that is made here."""

BEGIN_POLL_S = 0.2
"""Between two looks at a machine that has not begun within a second."""

UNFED_S = 10.0
"""A machine that says nothing for so long, with all sent and its engine there, never begins: an engine died
with a part of the files, and the container waits for the rest, and for their end, that nobody sends."""

NOT_SHARED = "bind source path does not exist"
"""What the engine says of a file that we see and it does not."""

OVERHEAD = 2
"""Processes of the bootstrap itself: sh and timeout."""


class Containers:
    """The machines of one engine. Where there are several, `host` is its name, and `others` are theirs."""

    name = "localDocker"
    capabilities = Capabilities(adopt=True, prestart=True, load_images=True, image_ids=True, network=True, cpusets=True)

    def __init__(
        self,
        settings: Docker,
        install: str,
        engine: Engine,
        outputs: Outputs,
        host: str = "",
        others: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self.capabilities = replace(self.capabilities, gpu=bool(settings.gpus))
        self._install = install
        self._host = host
        self._others = others
        self._prefix = f"tango-{hashlib.sha256(install.encode()).hexdigest()[:8]}"
        self._engine = engine
        self._images = Images(self._engine, self._throwaway)
        self._outputs = outputs
        self._inputs: dict[str, Attached] = {}
        """The standard inputs of the machines that this object made."""
        self._unshared = ""
        """Why no machine can be made until the settings are others; no job is to spend its retries on that."""

    async def open(self) -> None:
        await self._engine.open()
        await self._outputs.open()
        if self._settings.network == "bridge":
            log.warning(
                "docker.network is the engine's default bridge: jobs with a network reach each other and this host"
            )

    async def close(self) -> None:
        for name in list(self._inputs):
            await self._inputs.pop(name).close()
        await self._outputs.close()
        await self._engine.close()

    async def get_images(self) -> list[str]:
        self.check()
        return await self._images.names()

    def check(self) -> None:
        """Raises VmmsUnavailable if no job could be run now, though the engine is well."""
        self._check_shared()
        self._outputs.check()

    async def image_ids(self) -> dict[str, str]:
        return await self._images.ids()

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        await self._images.load(name, archive)

    async def pull_image(self, name: str, host: str = "") -> None:
        await self._images.pull(name, await asyncio.to_thread(self._credentials, name))

    async def push_image(self, name: str, host: str = "") -> None:
        await self._images.push(name, await asyncio.to_thread(self._credentials, name))

    def _credentials(self, name: str) -> dict[str, str]:
        """For the registry that the name begins with; none for one that is not in `docker.registries`."""
        for one in self._settings.registries:
            if name.startswith(f"{one.address}/"):
                try:
                    password = one.password_file.read_text().strip()
                except OSError as e:
                    raise VmmsError(f"docker.registries: {one.address}: password_file: {e}") from e
                return {"username": one.user, "password": password, "serveraddress": one.address}
        return {}

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        image = await self._images.find(spec.image)
        user = await self._images.user(image, owner)
        machine = Machine(id=self._name(), spec=spec, nonce=secrets.token_hex(16), owner=owner)
        channel = self._outputs.prepare(machine)
        try:
            await self._engine.create(machine.id, self._container(machine, image, user, channel))
            await self._start(machine)
        except VmmsError as e:
            if NOT_SHARED in str(e) and machine in self._outputs.machines():
                self._unshared = f"{e}: the engine sees other files than this dispatcher; see docker.output"
            await self.destroy_vm(machine)
            self._check_shared()
            raise
        return machine

    def _check_shared(self) -> None:
        if self._unshared:
            raise VmmsUnavailable(self._unshared)

    async def _start(self, machine: Machine) -> None:
        """With all streams attached before the first process can say anything."""
        async with AsyncExitStack() as opened:
            stdin = await self._engine.attach(machine.id, stdin=True)
            opened.push_async_callback(stdin.close)
            await self._outputs.attach(machine)
            await self._engine.start(machine.id)
            opened.pop_all()
        self._inputs[machine.id] = stdin

    async def wait_vm(self, machine: Machine) -> None:
        stdin = self._inputs.get(machine.id)
        if stdin is not None and stdin.broken:
            raise MachineLost("the machine ended, or its engine was away, before it had a job")
        await self._outputs.check_idle(machine)

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        # The pids cgroup counts this job's processes only; RLIMIT_NPROC counts those of all jobs of its uid.
        await self.feed(machine, bootstrap.archive(files, machine.nonce, limits, processes=0))
        await self._until_begun(machine)

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        """Sends the bytes to the machine's input and ends it, also when `chunks` fails or the call is cancelled."""
        stdin = self._inputs.get(machine.id)
        if stdin is None:
            raise MachineLost("the input of a machine can be fed only by the one that made it")
        try:
            async for chunk in chunks:
                await stdin.write(chunk)
        except MachineLost:
            return  # it has ended: run_job tells why
        finally:
            await stdin.close()
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _until_begun(self, machine: Machine) -> None:
        """Returns when the machine says something, or has ended. Raises NotStarted if it never will.

        Before that a job's time does not run, or a machine without its files would look like a program
        that is slow.
        """
        loop = asyncio.get_running_loop()
        if await self._outputs.begins(machine):
            return
        there_since = loop.time()
        while (await state_of(self._engine, machine)).running:
            try:
                if await self._outputs.has_begun(machine):
                    return
            except (VmmsUnavailable, TimeoutError):
                there_since = loop.time()
            if loop.time() - there_since > UNFED_S:
                await self.destroy_vm(machine)
                raise NotStarted("the files did not arrive")
            await asyncio.sleep(BEGIN_POLL_S)

    async def run_job(self, machine: Machine) -> Exit:
        return await self._outputs.ended(machine)

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        async with aclosing(self._outputs.chunks(machine)) as output:
            async for chunk in bootstrap.after_mark(output, machine.nonce):
                yield chunk
            async for _ in output:
                pass  # after_mark stops where the mark is missing; the end tells whether it was lost

    async def reach(self, machine: Machine) -> None:
        """Returns if the engine answers. Raises VmmsUnavailable, MachineLost."""
        await self._engine.state(machine.id)

    async def usage(self, machine: Machine) -> Usage | None:
        return await self._engine.usage(machine.id)

    async def destroy_vm(self, machine: Machine) -> None:
        await self.forget(machine)
        # First: an engine that hangs may have the files, and would begin the program when it goes on.
        over = self._outputs.over(machine)
        await self._outputs.shut(machine)
        await self._engine.remove(machine.id, ended=over)
        await self._outputs.remove(machine)

    async def forget(self, machine: Machine) -> None:
        """Lets go of its input."""
        stdin = self._inputs.pop(machine.id, None)
        if stdin is not None:
            await stdin.close()

    async def get_vms(self) -> list[Machine]:
        """Also those of which only the output is left: their creation failed, or somebody removed the container."""
        kept = {machine.id: machine for machine in self._outputs.machines()}
        ours = await self._engine.containers(f"{INSTALL}={self._install}")
        listed = [container for container in ours if container["Labels"].get(HOST) not in self._others]
        names = ((container["Names"] or [container["Id"]])[0].removeprefix("/") for container in listed)
        found = {name: _machine(name, container["Labels"]) for name, container in zip(names, listed, strict=True)}
        return list((kept | found).values())

    async def adopt(self, machine: Machine) -> None:
        await self.forget(machine)
        await self._outputs.adopt(machine)
        await self._until_begun(machine)

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
        labels = {INSTALL: self._install, OWNER: machine.owner, NONCE: machine.nonce, SPEC: spec}
        return labels | ({HOST: self._host} if self._host else {})

    def _rlimits(self) -> dict[str, int]:
        limits = {"core": 0, "nofile": 4096}
        if self._engine.podman:
            # Else it is Podman's own million, which an engine with less may not set; the pids cgroup counts anyway.
            limits["nproc"] = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        return limits

    def _container(self, machine: Machine, image: str, user: str, channel: Channel) -> dict[str, Any]:
        """What the engine is to make: everything an image could say about how it is run is overridden."""
        spec = machine.spec
        shell, *arguments = bootstrap.command(machine.nonce, channel.pipe)
        names = {"HOME": bootstrap.HOME, "USER": "autograde", "LOGNAME": "autograde", "LANG": "C.UTF-8"}
        uid, gid = user.split(":")
        scratch = f"rw,exec,nosuid,nodev,size={spec.disk_bytes}"
        # Podman gives a tmpfs to root alone; nobody else is in the container.
        owner = "mode=0777" if self._engine.podman else f"uid={uid},gid={gid},mode=0700"
        network = self._settings.network if spec.network else "none"
        host = {
            "NetworkMode": network,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": spec.processes + OVERHEAD,
            "Memory": spec.memory_bytes,
            "MemorySwap": spec.memory_bytes,
            "NanoCpus": int(min(spec.cores, self._engine.cores) * 10**9),
            "CpusetCpus": spec.cpuset,
            "IpcMode": "private",
            **channel.host,
            "ReadonlyRootfs": True,
            "Tmpfs": {
                bootstrap.HOME: f"{scratch},{owner}",
                "/tmp": f"{scratch},mode=1777",  # noqa: S108 - inside the container
                "/var/tmp": f"{scratch},mode=1777",  # noqa: S108
            },
            "Ulimits": [{"Name": name, "Soft": most, "Hard": most} for name, most in self._rlimits().items()],
        }
        # Its network namespace is then the runtime's work alone: the engine's part in it, two processes of its own,
        # takes as long as all the rest. It writes no /etc/hosts either, without which there is no `localhost`.
        alone = network == "none" and bool(channel.names) and not self._engine.podman
        if alone:
            names_mount = {"Type": "bind", "Source": channel.names, "Target": "/etc/hosts", "ReadOnly": True}
            host["Mounts"] = [*host["Mounts"], names_mount]
        runtime = self._settings.runtime
        if spec.gpu:
            host["DeviceRequests"] = [_gpus(self._settings.gpus)]
            runtime = self._settings.gpu_runtime or runtime
        if runtime:
            host["Runtime"] = runtime
        return {
            "Image": image,
            "Entrypoint": [shell],
            "Cmd": arguments,
            "User": user,
            "Env": [f"{name}={value}" for name, value in names.items()],
            # Not the image's: one below the tmpfs would be made there by the engine, as root.
            "WorkingDir": "/",
            "Healthcheck": {"Test": ["NONE"]},
            "NetworkDisabled": alone,
            "Labels": self._labels(machine),
            **dict.fromkeys(("OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"), True),
            "HostConfig": host,
        }


def _gpus(wanted: str) -> dict[str, Any]:
    """The engine takes a number, where -1 is all, or ids."""
    which: dict[str, Any] = {"Count": -1} if wanted == "all" else {"DeviceIDs": wanted.split(",")}
    return {"Driver": "", "Capabilities": [["gpu"]], **which}


class LocalDocker(Containers):
    """The back-end over the engine of `settings.docker.host`, or of /var/run/docker.sock."""

    def __init__(self, settings: Settings, install: str) -> None:
        engine = Engine(settings.docker.host, away_s=settings.docker.away_s)
        super().__init__(settings.docker, install, engine, outputs_of(settings, engine))


def outputs_of(settings: Settings, engine: Engine) -> Outputs:
    """As `docker.output` says."""
    way = settings.docker.output
    if way == "auto":
        way = "host" if engine.host.startswith("unix://") else "engine"
    if way == "engine":
        return EngineOutputs(engine)
    return HostOutputs(engine, settings.state_dir / "outputs", settings.limits.output_stop_bytes)


def _machine(name: str, labels: dict[str, str]) -> Machine:
    """From a container's labels; a spec of another version is still a machine, to be removed."""
    try:
        spec = msgspec.json.decode(labels.get(SPEC, ""), type=MachineSpec)
    except msgspec.MsgspecError:
        spec = NO_SPEC
    return Machine(id=name, spec=spec, nonce=labels.get(NONCE, ""), owner=labels.get(OWNER, ""))
