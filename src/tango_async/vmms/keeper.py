"""A small process of ours that keeps what a machine says, and outlives the dispatcher that started it.

All that a successor needs is in one directory:

    supervisor  the process's line of /proc/PID/stat, with pid and start time, noted before the machine is fed
    pipe        the output on its way; a job that held a file could truncate or grow it
    output      … and where it is kept, up to a size

How the process does it, and what more it does, is its starter's: supervisor.py, host_outputs.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from ..errors import MachineLost, VmmsUnavailable
from .bootstrap import PATH

CHUNK_BYTES = 256 * 1024
LOOK_S = 0.05
"""Between two looks at the output of a running program; its end is heard of at once."""

ROOM_BYTES = 1024**2
"""Space without which no machine is made: its records and what a job usually says."""

OUTPUT_SLACK_BYTES = 4 * 1024**2
"""How much more output is kept than what ends a job, so that the dispatcher sees which one it was."""


class Keeper:
    """The process as this dispatcher follows it: our child or, after adoption, anybody's."""

    def __init__(self, directory: Path, pid: int, pidfd: int) -> None:
        self.directory = directory
        self.ended = asyncio.Event()
        self.pid = pid
        self._pidfd = pidfd
        if pidfd < 0:
            self.ended.set()
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @classmethod
    def find(cls, directory: Path, boot_id: str) -> Self:
        """That of a machine which somebody else started; `ended` is set if it lives no more."""
        pid, pidfd = _living(directory) if boot_id == this_boot() else (0, -1)
        return cls(directory, pid, pidfd)

    def _on_end(self) -> None:
        self.leave()
        self.ended.set()

    def leave(self) -> None:
        """Follows it no more."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            os.close(self._pidfd)
            self._pidfd = -1

    async def output(self) -> AsyncGenerator[bytes, None]:
        """All output from the first byte, until the end. Raises MachineLost if the machine is removed."""
        try:
            file = os.open(self.directory / "output", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise MachineLost(f"machine {self.directory.name}: its output was removed") from e
        try:
            while True:
                over = self.ended.is_set()  # asked before the read: what came before the end is read
                if chunk := os.read(file, CHUNK_BYTES):
                    yield chunk
                    await asyncio.sleep(0)
                elif over:
                    return
                else:
                    await self.over_within(LOOK_S)
        finally:
            os.close(file)

    async def over_within(self, pause_s: float) -> bool:
        """Waits so long at most; whether it has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self.ended.wait()
        return self.ended.is_set()

    def kill_session(self) -> None:
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def start(directory: Path, arguments: Sequence[str], stdin: int | IO[bytes]) -> tuple[int, int]:
    """Starts the process in a session of its own: its pid and a pidfd. Raises OSError."""
    # close_fds keeps one machine's input out of the next one, where its end would not be seen.
    process = subprocess.Popen(
        arguments, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True,
        start_new_session=True, umask=0o022, env={"PATH": PATH, "LC_ALL": "C"}, cwd="/",
    )  # fmt: skip
    process.returncode = 0  # it is reaped by its pidfd, or outlives us: Popen need not warn
    try:
        # Noted by us and not by itself: it must be there before there is anything to lose.
        (directory / "supervisor").write_text(Path(f"/proc/{process.pid}/stat").read_text())
        return process.pid, os.pidfd_open(process.pid)
    except OSError:
        os.killpg(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        raise


def catch_ignored_signals() -> None:
    """Gives processes that this one will start the default meaning of signals that it was itself started to ignore.

    `nohup` and a shell's `&` have HUP, or INT and QUIT, ignored; what is ignored stays so over exec, and neither `sh`
    nor a job could undo it. What is caught does not stay: so they are caught, and nothing is done. In the main thread.
    """
    for number in signal.valid_signals() - _KEPT_IGNORED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


_KEPT_IGNORED = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTIN, signal.SIGTTOU}
"""Python ignores the first two, and Popen undoes it. Were the others caught, a use of the terminal would never end."""


def make_pipe(directory: Path, mode: int) -> None:
    """The pipe, and the empty file that is filled from it."""
    os.mkfifo(directory / "pipe")
    (directory / "pipe").chmod(mode)
    (directory / "output").touch()


def remove_directory(directory: Path) -> None:
    """Removes a machine's directory, which holds nothing but files; whatever else is found in there goes too."""
    try:
        for file in list(directory.iterdir()):
            file.unlink()
        directory.rmdir()
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)


def check_room(directory: Path, name: str) -> None:
    """Raises VmmsUnavailable if there is no room for a machine: every job would be lost here."""
    try:
        disk = os.statvfs(directory)
    except OSError as e:
        raise VmmsUnavailable(f"{name}: {directory}: {e.strerror}") from e
    if disk.f_bavail * disk.f_frsize < ROOM_BYTES or (disk.f_files and not disk.f_favail):
        raise VmmsUnavailable(f"{name}: {directory}: no space left for a machine")


def stat(path: str | Path) -> list[str]:
    """The fields of a stat line after the name: state, parent, group, session, … [19] the start time."""
    line = Path(path).read_text()
    return line[line.rindex(")") + 2 :].split()


def _living(directory: Path) -> tuple[int, int]:
    """The pid and a pidfd of the machine's keeper, or (0, -1) if that process is no more."""
    record = directory / "supervisor"
    with suppress(OSError, ValueError):
        line = record.read_text()
        if not line.endswith("\n"):
            return 0, -1
        pid = int(line.split()[0])
        pidfd = os.pidfd_open(pid)
        with suppress(OSError, ValueError):
            if stat(f"/proc/{pid}/stat")[19] == stat(record)[19]:
                return pid, pidfd
        os.close(pidfd)
    return 0, -1


def this_boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
