"""Output through the engine: followed live through an attached stream by whoever made the machine.

Whoever comes later (a successor, or the same one after the engine restarted) reads the engine's log,
which the `local` driver keeps, from the first byte on. An engine that is killed takes
with it what it had read and not yet written to its log: at the end of the output that is seen, and
the run is lost; in the middle it is not. What is read from the log lacks the newline of a line longer
than 16 KiB (seen with dockerd 20.10).

An engine holds a program up whose attached stream nobody reads, as it is while the link is cut or the reader
hangs: its own timer then ends a program that is not to blame. That run counts for nothing.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass

from ..errors import HostUnavailable, MachineLost, NotStarted, VmmsError, VmmsUnavailable
from ..machine import Exit, Machine
from . import bootstrap, outputs
from .engine import Engine, State
from .engine_streams import Attached, Ending
from .outputs import Channel, state_of

UNREAD_S = 1.0
"""Output that nobody reads for so long is left to the log: a full pipe would hold up the job."""

HELD_BYTES = 10**6
"""An engine keeps so much for a reader who takes none of it, before the program has to wait (dockerd 20.10)."""

LATE_S = 2.0
"""An engine whose word comes by so much later than it is waited for was out of reach; or we hung ourselves."""

LOG = {"Type": "local", "Config": {"max-size": "256m", "max-file": "1", "compress": "false"}}
"""Never rotated, since dockerd 20.10 loses and repeats bytes when a log is followed across a rotation.

Each line costs some 30 bytes beside its text, so that output_stop_bytes fit in lines of a usual length."""

GIVEN_UP = "the engine's log does not hold the whole output: it became too long, and gave up the beginning"

FAILED = range(bootstrap.FAILED_FIRST, bootstrap.FAILED_LAST + 1)


@dataclass(slots=True)
class _Live:
    """The streams of a machine that this object made."""

    output: Attached
    ending: Ending
    read: bool = False
    """Somebody took the output, or it was given up: it can be had from the log only."""

    async def close(self) -> None:
        self.read = True
        await self.output.close()
        self.ending.close()


@dataclass(slots=True)
class _Sent:
    """Bytes that went out, to be known again."""

    size: int = 0
    checksum: int = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self.checksum = zlib.crc32(data, self.checksum)


class EngineOutputs:
    """The streams and logs of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live: dict[str, _Live] = {}
        self._unwatched: set[str] = set()
        """Machines whose engine may have been away while they ran."""
        self._unheard: set[str] = set()
        """Those of which nothing was heard for a while."""

    async def open(self) -> None:
        if self._engine.podman:
            raise VmmsUnavailable("docker.output: Podman keeps no log that is exact; only `host` works with it")

    async def close(self) -> None:
        for name in list(self._live):
            await self._live.pop(name).close()

    def check(self) -> None:
        """An engine's disk is the engine's affair."""

    def prepare(self, machine: Machine) -> Channel:
        return Channel(host={"LogConfig": LOG})

    async def attach(self, machine: Machine) -> None:
        async with AsyncExitStack() as opened:
            output = await self._engine.attach(machine.id, output=True)
            opened.push_async_callback(output.close)
            ending = await self._engine.ending(machine.id)
            opened.pop_all()
        self._live[machine.id] = _Live(output, ending)

    async def check_idle(self, machine: Machine) -> None:
        state = await self._engine.state(machine.id)
        if not state.running:
            raise MachineLost(f"the machine ended with status {state.code} before it had a job")

    async def begins(self, machine: Machine) -> bool:
        live = self._live.get(machine.id)
        if live is None or live.read:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(outputs.SOON_S):
                return await live.output.begins()
        return False

    async def has_begun(self, machine: Machine) -> bool:
        async with asyncio.timeout(outputs.ANSWER_S), aclosing(self._engine.logs(machine.id, follow=False)) as chunks:
            async for _ in chunks:
                return True
        return False

    async def ended(self, machine: Machine) -> Exit:
        loop, patience = asyncio.get_running_loop(), UNREAD_S
        while True:
            asked = loop.time()
            try:
                async with asyncio.timeout(patience):
                    await self._engine.wait(machine.id)
            except TimeoutError:
                await self._leave_unread(machine)
            except VmmsUnavailable:
                self._unwatched.add(machine.id)
            state = await state_of(self._engine, machine)
            if loop.time() - asked > patience + LATE_S:
                self._unheard.add(machine.id)
            if not state.running:
                return await self._told(machine, state)
            patience = outputs.POLL_S

    async def _leave_unread(self, machine: Machine) -> None:
        live = self._live.get(machine.id)
        if live is not None and not live.read:
            await live.close()

    async def _told(self, machine: Machine, state: State) -> Exit:
        # Only a script that came to its end has status 0; of the others the first line tells.
        if state.code != 0 or state.status == "created":
            await self._check_started(machine, state)
        # An engine without live-restore takes its containers with it; one with it has lost the last output.
        doubtful = machine.id in self._unwatched or state.code == outputs.UNKNOWN_END
        code, out_of_memory = state.code, state.out_of_memory
        if doubtful and not out_of_memory:
            told = await self._check_whole(machine)
            if code == outputs.UNKNOWN_END:
                code, out_of_memory = told
        if code == bootstrap.TIMED_OUT and machine.id in self._unwatched | self._unheard:
            await self._check_time(machine)
        return bootstrap.ended(code, out_of_memory=out_of_memory)

    async def _check_whole(self, machine: Machine) -> tuple[int, bool]:
        """The exit code at the output's end, and whether memory ran out: its engine may have been away as it ended."""
        tail = b""
        async with aclosing(self._engine.logs(machine.id, follow=False)) as chunks:
            async for chunk in chunks:
                tail = (tail + chunk)[-bootstrap.HEAD_BYTES :]
        told = bootstrap.end_of(tail, machine.nonce)
        if told is None:
            raise MachineLost("the machine ended while its engine was away, and the end of its output was lost")
        return told[0], bool(told[1])

    async def _check_time(self, machine: Machine) -> None:
        """Whether it had all its time, and was not held up while nobody took what it said."""
        size = 0
        async with aclosing(self._engine.logs(machine.id, follow=False)) as chunks:
            async for chunk in chunks:
                if (size := size + len(chunk)) > HELD_BYTES:
                    raise HostUnavailable("the program was held up while nobody took its output, and its time ran out")

    async def _check_started(self, machine: Machine, state: State) -> None:
        said = b""
        async with aclosing(self._engine.logs(machine.id, follow=False)) as chunks:
            async for chunk in chunks:
                said += chunk
                if len(said) >= bootstrap.HEAD_BYTES:
                    break
        if said.startswith(bootstrap.mark(machine.nonce)):
            return
        if not said or state.code in FAILED:
            raise NotStarted(bootstrap.why_not_started(state.code, said))
        # Else it began: without the mark this is the output of a program whose beginning the log has given up.

    async def chunks(self, machine: Machine) -> AsyncGenerator[bytes, None]:
        """Over restarts of the engine."""
        sent = _Sent()
        live = self._live.get(machine.id)
        if live is not None and not live.read:
            live.read = True
            try:
                async with aclosing(live.output.chunks()) as chunks:
                    async for chunk in chunks:
                        sent.add(chunk)
                        yield chunk
                if await self._whole(machine, live):
                    return
            finally:
                await live.close()
        while True:
            state = await state_of(self._engine, machine)
            try:
                async with aclosing(self._logged(machine, state, sent)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if not state.running:
                    return
            except HostUnavailable:
                raise  # our word, and not the engine's
            except VmmsUnavailable:
                self._unheard.add(machine.id)

    async def _whole(self, machine: Machine, live: _Live) -> bool:
        """Whether the stream ended because the container did."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UNREAD_S):
                if await live.ending.kept():
                    return True
                self._unheard.add(machine.id)
        return False

    async def _logged(self, machine: Machine, state: State, sent: _Sent) -> AsyncGenerator[bytes, None]:
        """What the log holds after the bytes already sent, followed while the machine runs.

        Raises MachineLost if it does not begin with those: the engine died before it had written them; and
        HostUnavailable if the log became too long, and gave up its beginning, while nobody may have read it.
        """
        head = _Sent()
        mark = bootstrap.mark(machine.nonce)
        begin = b""
        async with aclosing(self._engine.logs(machine.id, follow=state.running)) as chunks:
            async for chunk in chunks:
                begin += chunk[: len(mark) - len(begin)]
                begun = mark.startswith(begin)
                if not begun and head.size > HELD_BYTES:
                    raise self._given_up(machine)
                repeated = chunk[: sent.size - head.size]
                head.add(repeated)
                if rest := chunk[len(repeated) :]:
                    if head != sent:
                        break
                    sent.add(rest)
                    head.add(rest)
                    if begun:
                        yield rest
        torn = head != sent and (head.size == sent.size or not state.running)
        if torn:
            raise MachineLost("the engine's log does not hold the whole output")
        if not state.running and state.code not in FAILED and begin not in (b"", mark):
            raise self._given_up(machine)

    def _given_up(self, machine: Machine) -> VmmsError:
        """Charged to a job that was followed all the time: it may have held up its own end after such an output."""
        unread = machine.id in self._unwatched | self._unheard
        return HostUnavailable(GIVEN_UP) if unread else MachineLost(GIVEN_UP)

    async def adopt(self, machine: Machine) -> None:
        live = self._live.pop(machine.id, None)
        if live is not None:
            await live.close()
        await self._engine.state(machine.id)
        self._unwatched.add(machine.id)

    def machines(self) -> list[Machine]:
        """Nothing is kept but by the engine."""
        return []

    def over(self, machine: Machine) -> bool:
        return False  # only the engine knows

    async def shut(self, machine: Machine) -> None:
        """What the engine has been sent it delivers; only it can end the machine."""

    async def remove(self, machine: Machine) -> None:
        live = self._live.pop(machine.id, None)
        if live is not None:
            await live.close()
        self._unwatched.discard(machine.id)
        self._unheard.discard(machine.id)
