"""How long a trivial job takes on machines elsewhere: engines over TLS and over SSH, and VMs over SSH.

Beside each, the same work over a connection of the same kind that is kept open, with nothing kept or promised. The
VMs are real sshds on this machine, behind doubles of the cloud's API and of the cluster's manager: how long one takes
to boot means nothing, so only machines that are ready before the job are told.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import aiodocker
import asyncssh
from figures import Figure, Report
from host import Missing, service
from latency import PREPARED, ROOM, SLOTS, Floors, Numbers, all_of, cleared, prepare, settled
from raw import TAR, Job, WarmContainers, cold_container

from support import backends
from support.ec2 import KEY, cloud_on, moto
from support.engine import Lacking
from support.netns import Certificates, RemoteEngine, two_engines
from support.service import Service
from support.tashi import ClusterManager
from support.vm import SshVm, host_key

FED = "dir=$(mktemp -d) && cd $dir && tar xf - && make </dev/null; status=$?; rm -r $dir; exit $status"
NETWORK = "network `none`"
"""As the service has it too where the output comes back through the engine."""
SSH_HOST = """
[[docker.hosts]]
name = "over-ssh"
url = "ssh://root@{address}{socket}"
slots = {slots}
key = "{key}"
known_hosts = "{known}"
"""


async def latency_dist(directory: Path, quick: bool) -> Report:
    rounds = 5 if quick else 8
    with _engines(directory) as engines:
        figures = await _over_tls(directory, engines, rounds)
        figures += await _over_ssh(directory, engines[0], rounds)
    return Report(figures)


@contextmanager
def _engines(directory: Path) -> Iterator[list[RemoteEngine]]:
    try:
        with two_engines(directory) as engines:
            yield engines
    except Lacking as e:
        raise Missing(str(e)) from e


async def _over_tls(directory: Path, engines: list[RemoteEngine], rounds: int) -> list[Figure]:
    """Two engines of two slots each; the floor's client gives each of them every other job."""
    folder, what = directory / "tls-service", "distDocker, two engines over TLS"
    folder.mkdir()
    numbers, options = Numbers(), backends.dist_docker(engines, folder / "tango.toml") | ROOM
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_client(engine)) for engine in engines]
        running = await stack.enter_async_context(service(folder, "tango-http", "tango-dispatcher", **options))
        cold: Floors = {f"create, start, wait; {NETWORK}": InTurn([cold_container(one) for one in clients])}
        figures = await all_of(f"{what}, cold", running, numbers, cold, rounds, cleared, sizes=(10,))
        warm = [WarmContainers(one) for one in clients]
        return figures + await _prepared(what, running, numbers, warm, rounds)


def _client(engine: RemoteEngine) -> aiodocker.Docker:
    tls = engine.certificates
    assert isinstance(tls, Certificates)
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.load_cert_chain(str(tls.cert), str(tls.key))
    return aiodocker.Docker(engine.url.replace("tcp", "https"), ssl_context=context)


async def _over_ssh(directory: Path, engine: RemoteEngine, rounds: int) -> list[Figure]:
    """One engine of four slots; the floor's client has an SSH connection of its own, to the same sshd."""
    folder = directory / "ssh-service"
    folder.mkdir()
    key, known, socket = folder / "key", folder / "known", folder / "engine"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    known.write_text(f"{engine.address} {engine.start_sshd(key.with_suffix('.pub').read_text())}\n")
    address = {"address": engine.address, "socket": engine.path, "key": key, "known": known}
    (folder / "tango.toml").write_text(SSH_HOST.format(slots=SLOTS, **address))
    options = {"TANGO_VMMS": "distDocker", "TANGO_CONFIG": str(folder / "tango.toml")} | ROOM
    async with (
        asyncssh.connect(engine.address, username="root", client_keys=[str(key)], known_hosts=str(known)) as connection,
        await connection.forward_local_path(str(socket), engine.path),
        aiodocker.Docker(f"unix://{socket}") as client,
        service(folder, "tango-http", "tango-dispatcher", **options) as running,
    ):
        await connection.run("true")  # or sshd would hold back small packets
        warm = [WarmContainers(client)]
        return await _prepared("distDocker, one engine over SSH", running, Numbers(), warm, rounds)


async def _prepared(
    what: str, running: Service, numbers: Numbers, warm: list[WarmContainers], rounds: int
) -> list[Figure]:
    await prepare(running, PREPARED)

    async def ready() -> None:
        for one in warm:
            await one.prepare(PREPARED // len(warm))
        await settled()

    floors: Floors = {f"fed on stdin, prepared; {NETWORK}": InTurn(warm)}
    return await all_of(f"{what}, prepared", running, numbers, floors, rounds, ready, sizes=(10,))


class InTurn:
    """A job on one after the other."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._next = cycle(jobs)

    async def __call__(self) -> float:
        return await next(self._next)()


# -- VMs -----------------------------------------------------------------------------------------------


async def latency_ec2(directory: Path, quick: bool) -> Report:
    """Instances that are used again, cleaned in between, so that none is booted while it is measured."""
    _need_vms()
    with moto() as url:
        async with cloud_on({KEY: url}) as cloud:
            options = backends.ec2(cloud) | {"TANGO_EC2_REUSE": "1"}
            return await _on_vms("ec2SSH", "moto for its API; instances are used again", directory, options, quick)


async def latency_tashi(directory: Path, quick: bool) -> Report:
    """An instance serves one job; the next ones are booted in the pauses."""
    _need_vms()
    async with ClusterManager(directory) as manager:
        options = backends.tashi(manager, directory / "images")
        return await _on_vms("tashiSSH", "a double of its manager", directory, options, quick)


def _need_vms() -> None:
    if lacking := SshVm.missing():
        raise Missing(lacking)


async def _on_vms(what: str, stands_on: str, directory: Path, options: dict[str, str], quick: bool) -> Report:
    async with (
        bare_ssh(directory) as floor,
        service(directory, "tango-http", "tango-dispatcher", **options, **ROOM) as running,
    ):
        await prepare(running, PREPARED)

        async def ready() -> None:
            await settled()
            await prepare(running, PREPARED)

        floors: Floors = {"make over a kept SSH connection": floor}
        rounds, note = 6 if quick else 10, f"real sshds, {stands_on}"
        return Report(
            await all_of(f"{what}, prepared", running, Numbers(), floors, rounds, ready, sizes=(10,), note=note)
        )


@asynccontextmanager
async def bare_ssh(directory: Path) -> AsyncIterator[Job]:
    """The tar to a shell that unpacks it and runs make, on VMs of our own, each over a connection that is kept."""
    private, public = host_key(directory, "floor")
    key = asyncssh.import_private_key(private)
    async with AsyncExitStack() as stack:
        free: asyncio.Queue[Any] = asyncio.Queue()
        for number in range(SLOTS):
            vm = SshVm(f"127.14.{os.getpid() % 250 + 1}.{250 + number}", public)
            stack.callback(vm.kill)
            vm.start()
            await asyncio.to_thread(vm.wait)
            known = asyncssh.import_public_key(vm.public_key)
            connecting = asyncssh.connect(vm.address, username="root", client_keys=[key], known_hosts=([known], [], []))
            free.put_nowait(await stack.enter_async_context(connecting))

        async def job() -> float:
            connection = await free.get()
            begun = time.perf_counter()
            done = await connection.run(FED, input=TAR, encoding=None, check=True)
            taken = time.perf_counter() - begun
            if b"hello" not in done.stdout:
                raise RuntimeError(f"a job over bare SSH failed: {done.stderr}")
            free.put_nowait(connection)
            return taken

        yield job
