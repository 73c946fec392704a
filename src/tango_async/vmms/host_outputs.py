"""Output through a pipe of this host into a file, past the engine.

The pipe alone is shown to the container, whose bootstrap opens it before anything else; a small
process of ours (keeper.py) reads it, and ends when the last process of the container is gone. So a
container that runs on while its engine or its dispatcher is dead loses no byte, and the file with
its end mark tells the result without asking the engine. In a machine's directory, beside a keeper's:

    hosts   the container's /etc/hosts, where it has no network
    record  the machine, and the host's boot id, without which a pid says nothing
    done    the status of `cat` and a newline: 0 if the output is whole
"""

from __future__ import annotations

import asyncio
import mmap
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import msgspec

from ..errors import MachineLost, NotStarted, VmmsError, VmmsUnavailable
from ..machine import Exit, Machine
from . import bootstrap, outputs
from .engine import Engine, State
from .keeper import OUTPUT_SLACK_BYTES, Keeper, check_room, make_pipe, remove_directory, start, this_boot
from .outputs import NO_SPEC, Channel, state_of

PIPE = "/dev/tango"
"""The pipe in the container; whose /dev is its own, and not the job's to write."""

PIPE_MODE = 0o622
"""Whoever runs jobs in the container may write, and not read."""

SCRIPT = r"""
cd "$1" && ulimit -f "$2" || exit
cat <pipe >>output
echo $? >done
"""
"""`cat` begins when the container has opened the pipe. It fails at a full disk, and at too much output."""

NAMES = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
"""The /etc/hosts of a container without a network."""

TOO_MUCH = 128 + 25
"""SIGXFSZ."""

KILL_S = 2.0
BEGIN_POLL_S = (0.002, 0.05)
"""Shortest and longest pause between two looks whether a machine has said something."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, as its directory tells whoever comes later, also when its container is gone."""

    v: int = 1
    boot_id: str
    machine: Machine


class HostOutputs:
    """Below `directory`, which a successor of this dispatcher must find again."""

    def __init__(self, engine: Engine, directory: Path, stop_bytes: int) -> None:
        self._engine = engine
        self._directory = directory
        self._blocks = (stop_bytes + OUTPUT_SLACK_BYTES) // 512
        self._keepers: dict[str, Keeper] = {}

    async def open(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._directory = self._directory.resolve()  # for the engine, which is elsewhere
        except OSError as e:
            raise VmmsUnavailable(f"localDocker: {self._directory}: {e.strerror}") from e

    async def close(self) -> None:
        for keeper in self._keepers.values():
            keeper.leave()
        self._keepers.clear()

    def check(self) -> None:
        check_room(self._directory, "localDocker")

    def prepare(self, machine: Machine) -> Channel:
        directory = self._directory / machine.id
        try:
            directory.mkdir(mode=0o700)
            (directory / "record").write_bytes(msgspec.json.encode(Record(boot_id=this_boot(), machine=machine)))
            (directory / "hosts").write_text(NAMES)
            (directory / "hosts").chmod(0o644)
            make_pipe(directory, PIPE_MODE)
            command = ["sh", "-c", SCRIPT, "tango-output", str(directory), str(self._blocks)]
            self._keepers[machine.id] = Keeper(directory, *start(directory, command, subprocess.DEVNULL))
        except OSError as e:
            _release(directory)
            shutil.rmtree(directory, ignore_errors=True)
            raise VmmsError(f"localDocker: {directory}: {e.strerror}") from e
        # Not of the kind that makes a directory of what is missing.
        mount = {"Type": "bind", "Source": str(directory / "pipe"), "Target": PIPE}
        return Channel(PIPE, {"Mounts": [mount], "LogConfig": {"Type": "none"}}, str(directory / "hosts"))

    async def attach(self, machine: Machine) -> None:
        """The engine has no part in it."""

    async def check_idle(self, machine: Machine) -> None:
        if self._keeper(machine).ended.is_set():
            raise MachineLost("the machine ended before it had a job")

    async def begins(self, machine: Machine) -> bool:
        keeper = self._keeper(machine)
        pause_s = BEGIN_POLL_S[0]
        with suppress(TimeoutError):
            async with asyncio.timeout(outputs.SOON_S):
                while not await self.has_begun(machine):
                    await keeper.over_within(pause_s)
                    pause_s = min(pause_s * 1.5, BEGIN_POLL_S[1])
                return True
        return False

    async def has_begun(self, machine: Machine) -> bool:
        keeper = self._keeper(machine)
        return keeper.ended.is_set() or _has_said(keeper.directory)

    async def ended(self, machine: Machine) -> Exit:
        keeper = self._keeper(machine)
        patience_s = outputs.SOON_S
        while not await keeper.over_within(patience_s):
            patience_s = outputs.POLL_S
            # Only a machine that never opened the pipe is asked for: of the others the pipe tells.
            if not _has_said(keeper.directory) and not (await state_of(self._engine, machine)).running:
                _release(keeper.directory)
        return await self._told(machine, keeper.directory)

    async def _told(self, machine: Machine, directory: Path) -> Exit:
        status = _status(directory)
        if status == TOO_MUCH:
            return bootstrap.ended(bootstrap.KILLED)  # whoever reads all that there is sees why
        if status != 0:
            raise MachineLost(f"what the machine said was not kept whole: its keeper ended with {status}")
        head, end = _look(directory, machine.nonce)
        started = head.startswith(bootstrap.mark(machine.nonce))
        if started and end is not None:
            code, out_of_memory = end
            if out_of_memory is None:
                out_of_memory = (await self._stopped(machine)).out_of_memory
            return bootstrap.ended(code, out_of_memory=out_of_memory)
        try:
            state = await self._stopped(machine)
        except MachineLost as e:
            if started:
                raise
            raise NotStarted("the machine was removed before the program began") from e
        if not started:
            raise NotStarted(bootstrap.why_not_started(state.code, head))
        if state.code in (bootstrap.KILLED, outputs.UNKNOWN_END) and not state.out_of_memory:
            # Nothing inside can kill the bootstrap: an engine without live-restore takes its containers with it.
            raise MachineLost("the machine was killed from outside")
        return bootstrap.ended(state.code, out_of_memory=state.out_of_memory)

    async def _stopped(self, machine: Machine) -> State:
        """The end as the engine knows it, a moment after the last process is gone."""
        pause_s = 0.01
        while (state := await state_of(self._engine, machine)).running:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        return state

    def chunks(self, machine: Machine) -> AsyncGenerator[bytes, None]:
        return self._keeper(machine).output()

    async def adopt(self, machine: Machine) -> None:
        known = self._keepers.pop(machine.id, None)
        if known is not None:
            known.leave()
        self._keeper(machine)

    def machines(self) -> list[Machine]:
        try:
            directories = sorted(self._directory.iterdir())
        except OSError as e:
            raise VmmsUnavailable(f"localDocker: {self._directory}: {e.strerror}") from e
        records = [(directory.name, _read(directory)) for directory in directories]
        return [record.machine if record else Machine(id=name, spec=NO_SPEC, nonce="") for name, record in records]

    def over(self, machine: Machine) -> bool:
        known = self._keepers.get(machine.id)
        return known is not None and known.ended.is_set() and _status(known.directory) == 0

    async def shut(self, machine: Machine) -> None:
        """A bootstrap that nobody listens to ends before its program, also while its engine is away."""
        directory = self._directory / machine.id
        if not directory.exists():
            return
        self._keeper(machine).kill_session()
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_S):
                while _release(directory):  # one that was killed still listens, until it has had its turn to die
                    await asyncio.sleep(BEGIN_POLL_S[0])

    async def remove(self, machine: Machine) -> None:
        directory = self._directory / machine.id
        if not directory.exists():
            return
        keeper = self._keeper(machine)
        _release(directory)  # one that died before it was noted still waits for a container
        await keeper.over_within(KILL_S)
        keeper.leave()
        self._keepers.pop(machine.id, None)
        await asyncio.to_thread(remove_directory, directory)

    def _keeper(self, machine: Machine) -> Keeper:
        """The machine's keeper, found again if this instance does not follow it yet."""
        known = self._keepers.get(machine.id)
        if known is None:
            directory = self._directory / machine.id
            if not directory.exists():
                raise MachineLost(f"machine {machine.id}: its output is not on this host")
            record = _read(directory)
            known = self._keepers[machine.id] = Keeper.find(directory, record.boot_id if record else "")
        return known


def _read(directory: Path) -> Record | None:
    try:
        return msgspec.json.decode((directory / "record").read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError):
        return None


def _release(directory: Path) -> bool:
    """Lets a keeper go on that waits for somebody to open the pipe. Whether anybody has it open, to read."""
    try:
        os.close(os.open(directory / "pipe", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _has_said(directory: Path) -> bool:
    with suppress(OSError):
        return (directory / "output").stat().st_size > 0
    return False


def _status(directory: Path) -> int | None:
    """None if the keeper came to no end of its own."""
    with suppress(OSError, ValueError):
        record = (directory / "done").read_text()
        if record.endswith("\n"):
            return int(record)
    return None


def _look(directory: Path, nonce: str) -> tuple[bytes, tuple[int, bool | None] | None]:
    """The beginning of the output, and what its end mark says."""
    try:
        with (directory / "output").open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return b"", None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as output:
                return output[: bootstrap.HEAD_BYTES], bootstrap.end_of(output, nonce)
    except OSError as e:
        raise MachineLost(f"machine {directory.name}: its output is gone: {e.strerror}") from e
