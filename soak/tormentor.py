"""Does what the plan says to the processes, connections and the disk of the stage, and to nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from plan import ENGINES, Torment
from program import Program
from proxy import Proxy
from recovery import Recovery
from redis.exceptions import RedisError
from stage import PREFIX, Stage

from support.engine import PrivateEngine
from support.netns import RemoteEngine


class Tormentor:
    def __init__(self, stage: Stage, torments: list[Torment], recovery: Recovery) -> None:
        self._stage = stage
        self._torments = torments
        self._recovery = recovery
        self.done: Counter[str] = Counter()
        self.lost_machines: set[int] = set()
        """Jobs whose machine was destroyed: these may run again."""
        self.engine_away: list[tuple[float, float]] = []
        """By the clock of the machines."""
        # It takes its time to start, and what is planned for it next must wait until it has.
        self._engine_turns = [asyncio.Lock() for _ in range(ENGINES)]
        parts = [stage.redis, *stage.servers, *stage.dispatchers]
        self._programs = {program.name: program for program in parts}
        self._proxies = {f"http-{i}-clients": proxy for i, proxy in enumerate(stage.server_proxies)}
        for program, proxy in zip((*stage.servers, *stage.dispatchers), stage.redis_proxies, strict=True):
            self._proxies[f"{program.name}-redis"] = proxy

    async def run(self) -> None:
        """All torments; when it returns, each is undone."""
        begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for torment in self._torments:
                await asyncio.sleep(max(0.0, begin + torment.at_s - time.monotonic()))
                group.create_task(self._torment(torment))

    async def _torment(self, t: Torment) -> None:
        match t.what, t.part:
            case what, part if part.startswith("engine-"):
                number = int(part.partition("-")[2])
                do = {"kill": self._kill_engine, "pause": self._pause_engine, "part": self._part_from_engine}[what]
                async with self._engine_turns[number]:
                    await do(self._stage.engines[number], part, t.for_s)
            case "destroy", _:
                await self._destroy_machine(t)
            case "fill", _:
                await self._fill_disk(t.for_s)
            case (("cut" | "hold"), part):
                await self._part(self._proxies[part], t)
            case "kill", part:
                await self._kill(self._programs[part], t)
            case _, part:
                await self._pause(self._programs[part], t)

    def _count(self, t: str) -> None:
        self.done[t] += 1

    # -- processes -----------------------------------------------------------------------------------

    async def _kill(self, program: Program, t: Torment) -> None:
        before = await self._recovery.instance_of(program) if program in self._stage.dispatchers else None
        self._recovery.away(t.part)
        # Where it is just starting again by itself, nothing was killed.
        if program.kill():
            self._count(f"kill {_kind(t.part)}")
        await asyncio.sleep(t.for_s)
        program.allow()
        self._recovery.back(t.part)
        if program is self._stage.redis:
            self._recovery.watch(t.part, self._recovery.redis_works)
        elif program in self._stage.servers:
            number = self._stage.servers.index(program)
            self._recovery.watch(t.part, lambda: self._recovery.server_works(number))
        else:
            self._recovery.watch(t.part, lambda: self._recovery.dispatcher_works(program, before))

    async def _pause(self, program: Program, t: Torment) -> None:
        self._recovery.away(t.part)
        if program.send(signal.SIGSTOP):
            self._count(f"pause {_kind(t.part)}")
        await asyncio.sleep(t.for_s)
        program.send(signal.SIGCONT)
        self._recovery.back(t.part)

    async def _part(self, proxy: Proxy, t: Torment) -> None:
        self._count(f"{t.what} connections")
        if t.what == "cut":
            proxy.cut()
            return
        self._recovery.away(t.part)
        proxy.hold()
        await asyncio.sleep(t.for_s)
        proxy.release()
        self._recovery.back(t.part)

    # -- the engine ----------------------------------------------------------------------------------

    async def _kill_engine(self, engine: PrivateEngine, part: str, for_s: float) -> None:
        began = time.time()
        self._recovery.away(part)
        await asyncio.to_thread(engine.kill)
        self._count("kill engine")
        await asyncio.sleep(for_s)
        await asyncio.to_thread(engine.start)
        self._recovery.back(part)
        self.engine_away.append((began, time.time()))
        back = time.monotonic()
        self._recovery.watch(part, lambda: self._recovery.engine_works(back))

    async def _part_from_engine(self, engine: PrivateEngine, part: str, for_s: float) -> None:
        """Its link is cut, and healed."""
        assert isinstance(engine, RemoteEngine)
        self._recovery.away(part)
        await asyncio.to_thread(engine.cut)
        self._count("cut link")
        await asyncio.sleep(for_s)
        await asyncio.to_thread(engine.heal)
        self._recovery.back(part)
        back = time.monotonic()
        self._recovery.watch(part, lambda: self._recovery.engine_works(back))

    async def _pause_engine(self, engine: PrivateEngine, part: str, for_s: float) -> None:
        self._recovery.away(part)
        engine.send(signal.SIGSTOP)
        self._count("pause engine")
        await asyncio.sleep(for_s)
        engine.send(signal.SIGCONT)
        self._recovery.back(part)

    # -- machines ------------------------------------------------------------------------------------

    async def _destroy_machine(self, t: Torment) -> None:
        """Ends a running machine from the outside; which one the time decides, since they come and go."""
        with suppress(OSError, RedisError, TimeoutError):
            async with asyncio.timeout(1.0):
                machines = await self._stage.witness.hgetall(f"{PREFIX}machines")
            for name in sorted(machines):
                job = int(machines[name])
                if job not in self.lost_machines and await self._end_machine(name.decode()):
                    self.lost_machines.add(job)
                    self._count("destroy machine")
                    return

    async def _end_machine(self, name: str) -> bool:
        if self._stage.engines:
            host, _, container = name.rpartition("/")
            engine = self._stage.engines[int(host[1:] or 0)]
            if await asyncio.to_thread(engine.answers):
                await asyncio.to_thread(engine.remove, container)
                return True
            return False
        for record in self._stage.state.glob(f"*/machines/{name}/supervisor"):
            with suppress(OSError, ValueError, IndexError):
                pid = int(record.read_text().split()[0])
                if os.fsencode(record.parent) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    # -- the disk ------------------------------------------------------------------------------------

    async def _fill_disk(self, for_s: float) -> None:
        self._recovery.away("disk")
        ballast = self._stage.labs / "ballast"
        await asyncio.to_thread(_fill, ballast)
        self._count("fill disk")
        await asyncio.sleep(for_s)
        ballast.unlink()
        self._recovery.back("disk")


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def _kind(part: str) -> str:
    return part.partition("-")[0].replace("http", "server")
