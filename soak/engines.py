"""Jobs in containers: of one engine beside the dispatchers, or of several behind links that can be cut, one by ssh."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar

from count import Starts
from plan import Part, Wish, Wishes
from settings import JOBS_PER_S, SETTLE_S

from support.backends import dist_docker
from support.engine import PrivateEngine
from support.netns import SSHD, Certificates, RemoteEngine
from support.podman import PodmanEngine

BUILDER = Path(__file__).resolve().parents[1] / "deploy/images/grading_image.py"
HOSTS = 3

SSH_HOST = """
[[docker.hosts]]
name = "n{number}"
url = "ssh://root@{engine.address}{engine.path}"
slots = 2
key = "{key}"
known_hosts = "{known_hosts}"
"""


class EnginePart:
    """One engine, as it is tormented."""

    kind = "engine"

    def __init__(self, engine: PrivateEngine, away: list[tuple[float, float]]) -> None:
        self._engine = engine
        self._away = away
        self._killed_at = 0.0

    async def begin(self, what: str) -> bool:
        match what:
            case "kill":
                self._killed_at = time.time()
                await asyncio.to_thread(self._engine.kill)
            case "pause":
                self._engine.send(signal.SIGSTOP)
            case _:
                await asyncio.to_thread(self._remote.cut)
        return True

    async def undo(self, what: str) -> None:
        match what:
            case "kill":
                await asyncio.to_thread(self._engine.start)
                self._away.append((self._killed_at, time.time()))
            case "pause":
                self._engine.send(signal.SIGCONT)
            case _:
                await asyncio.to_thread(self._remote.heal)

    @property
    def _remote(self) -> RemoteEngine:
        assert isinstance(self._engine, RemoteEngine)
        return self._engine


class SshPart:
    """The sshd beside an engine, as it is killed: with all connections."""

    kind = "sshd"

    def __init__(self, engine: RemoteEngine, public: str) -> None:
        self._engine = engine
        self._public = public

    async def begin(self, what: str) -> bool:
        await asyncio.to_thread(self._engine.stop_sshd)
        return True

    async def undo(self, what: str) -> None:
        await asyncio.to_thread(self._engine.start_sshd, self._public)


class Dockers:
    """A Backend but for which engines there are, and how the service is told of them."""

    jobs_per_s: ClassVar = JOBS_PER_S
    settle_s: ClassVar = SETTLE_S

    def __init__(self, directory: Path, state: Path, starts: Starts) -> None:
        self._directory = directory
        self._starts = starts
        self._engines: list[PrivateEngine] = []
        self.away: list[tuple[float, float]] = []
        self.lost: set[str] = set()
        self.parts: Mapping[str, Part] = {}

    @staticmethod
    def _missing(engine: Callable[[], str]) -> list[str]:
        absent = [program for program in ("runc", "docker") if shutil.which(program) is None]
        return absent + ([engine()] if engine() else [])

    async def _start(self, *engines: PrivateEngine) -> None:
        """With the image, and the runtime that shows jobs the starts, which Podman has already."""
        for engine in engines:
            self._engines.append(engine)
            runtimes = {"runtimes": {"soak": {"path": str(self._starts.runtime)}}}
            (engine.directory / "daemon.json").write_text(json.dumps(runtimes))
            engine.start()
        await asyncio.gather(*map(_load_image, engines))
        self.parts = {f"engine-{i}": EnginePart(engine, self.away) for i, engine in enumerate(self._engines)}

    def asks(self, token: str) -> dict[str, object]:
        return {}

    async def _remove(self, number: int, container: str) -> bool:
        engine = self._engines[number]
        with suppress(HTTPException):  # it was killed meanwhile
            if await asyncio.to_thread(engine.answers):
                await asyncio.to_thread(engine.remove, container)
                return True
        return False

    async def strays(self) -> list[str]:
        return [f"container {name[:12]}" for engine in self._engines for name in engine.containers()]

    async def close(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(engine.stop) for engine in self._engines))


async def _load_image(engine: PrivateEngine) -> None:
    environment = os.environ | {"DOCKER_HOST": engine.host}
    builder = await asyncio.create_subprocess_exec(
        sys.executable, str(BUILDER), env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    if await builder.wait() != 0:
        raise RuntimeError(f"{engine.host} has no image")


class LocalDocker(Dockers):
    dispatchers: ClassVar = 2
    store: ClassVar = "local"
    wishes: ClassVar = Wishes([Wish(3, "kill", "engine-0", 2)], [Wish(2, "pause", "engine-0", 6)])

    @staticmethod
    def missing() -> list[str]:
        return Dockers._missing(PrivateEngine.missing)

    async def open(self) -> None:
        await self._start(PrivateEngine())

    def environment(self, program: str) -> dict[str, str]:
        return {"DOCKER_HOST": self._engines[0].host, "TANGO_DOCKER_RUNTIME": "soak"}

    async def destroy(self, machine: str) -> bool:
        return await self._remove(0, machine)


class Monitor:
    """The process that tells Podman of a container's end; one of them is killed, as when memory runs out."""

    kind = "monitor"

    def __init__(self, engine: PodmanEngine, lost: set[str]) -> None:
        self._engine = engine
        self._lost = lost

    async def begin(self, what: str) -> bool:
        for pid, container in self._engine.monitors().items():
            if container not in self._lost:
                self._lost.add(container)
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    async def undo(self, what: str) -> None:
        """It does not come back."""


class LocalPodman(LocalDocker):
    """localDocker on Podman, whose service is killed: the containers go on without it, each with its monitor."""

    wishes: ClassVar = LocalDocker.wishes + Wishes([Wish(3, "crash", "monitor", 0)])

    @staticmethod
    def missing() -> list[str]:
        return Dockers._missing(PodmanEngine.missing)

    async def open(self) -> None:
        self._podman = PodmanEngine(str(self._starts.runtime))
        await self._start(self._podman)
        self.parts = {**self.parts, "monitor": Monitor(self._podman, self.lost)}

    def environment(self, program: str) -> dict[str, str]:
        return {"TANGO_VMMS": "localDocker", "DOCKER_HOST": self._podman.host}

    async def strays(self) -> list[str]:
        return await super().strays() + [f"process {command}" for command in self._podman.left()]


class SeveralDockers(Dockers):
    """What takes more than the link's silence breaks connections, and what takes less is mended by TCP.

    The last engine is reached by ssh, the others with TLS.
    """

    dispatchers: ClassVar = 3
    store: ClassVar = "s3"
    wishes: ClassVar = Wishes(
        [*(Wish(1, "kill", f"engine-{i}", 2) for i in range(HOSTS)), Wish(2, "kill", "sshd", 3)],
        [
            *(Wish(1, "pause", f"engine-{i}", 6) for i in range(HOSTS)),
            *(Wish(6, "cut off", f"engine-{i}", 20) for i in range(HOSTS)),
        ],
    )

    @staticmethod
    def missing() -> list[str]:
        absent = [] if Path(SSHD).exists() else ["sshd"]
        return Dockers._missing(RemoteEngine.missing) + absent

    async def open(self) -> None:
        tls = Certificates(self._directory / "tls")
        engines = [RemoteEngine(tls) for _ in range(HOSTS)]
        await self._start(*engines)
        *others, last = engines
        dist_docker(others, self._config, self._by_ssh(last))

    def _by_ssh(self, engine: RemoteEngine) -> str:
        """With its sshd started, the host's table."""
        key, known_hosts = self._directory / "ssh-key", self._directory / "known-hosts"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        public = key.with_suffix(".pub").read_text()
        known_hosts.write_text(f"{engine.address} {engine.start_sshd(public)}\n")
        self.parts = {**self.parts, "sshd": SshPart(engine, public)}
        return SSH_HOST.format(number=HOSTS - 1, engine=engine, key=key, known_hosts=known_hosts)

    @property
    def _config(self) -> Path:
        return self._directory / "tango.toml"

    def environment(self, program: str) -> dict[str, str]:
        return {"TANGO_CONFIG": str(self._config), "TANGO_DOCKER_RUNTIME": "soak"}

    async def destroy(self, machine: str) -> bool:
        host, _, container = machine.rpartition("/")
        return await self._remove(int(host.removeprefix("n")), container)
