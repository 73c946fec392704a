"""The one process of ours beside a sandbox, and how a dispatcher follows it.

A sandbox must outlive a dispatcher that dies, so what watches over it is a small `sh` in a session of
its own. Beside what every keeper has (keeper.py), the machine's directory holds:

    init        bubblewrap's information, with the pid of the sandbox's first process
    guard       seconds the program may take; its only timer, out of the job's reach
    exit        the exit code and a newline; without the newline it was not written whole

The supervisor dies with nobody, and everything else dies with it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import MachineLost
from .collector import collected
from .keeper import Keeper, make_pipe, start, stat

SCRIPT = r"""
newline='
'
dir=$1 output_blocks=$2 guard_s=$3 groups=$4; shift 4
cd "$dir" || exit
""" + collected(r"""
(
  while [ -n "$groups" ]; do
    echo 0 >"${groups%%"$newline"*}/cgroup.procs" || exit 89
    groups=${groups#*"$newline"}
  done
  echo 500 >/proc/self/oom_score_adj
  exec "$@" 6>init @FILES@ 3>&-
) >&3 2>&3
""")
"""Before the mark, no timer: the sandbox waits for input whose other end the dispatcher holds, and ends with it."""

PIPE_BYTES = 1024**2
KILL_S = 2.0

_INIT = re.compile(r'"child-pid": (\d+)\D')


def command(
    directory: Path,
    run: Sequence[str],
    files: Mapping[int, Path],
    *,
    output_bytes: int,
    guard_s: int,
    groups: Sequence[Path],
) -> list[str]:
    script = SCRIPT.replace("@FILES@", " ".join(f"{fd}<{shlex.quote(str(path))}" for fd, path in files.items()))
    joined = "".join(f"{group}\n" for group in groups)
    return ["sh", "-c", script, "tango-sandbox", str(directory), str(output_bytes // 512), str(guard_s), joined, *run]


class Supervisor(Keeper):
    """A machine's supervisor; whoever started it feeds it."""

    def __init__(self, directory: Path, pid: int, pidfd: int, stdin: int = -1) -> None:
        super().__init__(directory, pid, pidfd)
        self._stdin = stdin
        self._writable: asyncio.Future[None] | None = None

    @classmethod
    def start(cls, directory: Path, arguments: Sequence[str]) -> Supervisor:
        """Raises OSError."""
        make_pipe(directory, 0o666)  # so that a job may open /dev/stdout, whoever it is
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(writer, fcntl.F_SETFL, os.O_WRONLY | os.O_NONBLOCK)
            with suppress(PermissionError):  # beyond the user's share of pipe memory
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            pid, pidfd = start(directory, arguments, reader)
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        return cls(directory, pid, pidfd, writer)

    def leave(self) -> None:
        """Follows it no more. A machine that still waits for files ends for want of them."""
        super().leave()
        self.close_input()

    async def write(self, data: bytes) -> None:
        """Raises BrokenPipeError if the machine takes no more."""
        view = memoryview(data)
        while view:
            if self._stdin < 0:
                raise BrokenPipeError
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await self._until_writable()

    async def _until_writable(self) -> None:
        loop = asyncio.get_running_loop()
        self._writable = loop.create_future()
        loop.add_writer(self._stdin, _wake, self._writable)
        try:
            await self._writable
        finally:
            self._writable = None
            if self._stdin >= 0:
                loop.remove_writer(self._stdin)

    def close_input(self) -> None:
        if self._stdin < 0:
            return
        stdin, self._stdin = self._stdin, -1
        if self._writable is not None:
            asyncio.get_running_loop().remove_writer(stdin)
            _wake(self._writable)
        os.close(stdin)

    def exit_code(self) -> int:
        """Raises MachineLost if there is no record of the end."""
        with suppress(OSError, ValueError):
            record = (self.directory / "exit").read_text()
            if record.endswith("\n"):
                return int(record)
        raise MachineLost(f"sandbox {self.directory.name}: its end was not recorded")

    async def kill(self) -> None:
        """Ends the sandbox and all in it.

        Its init goes first: bubblewrap waits until the kernel has ended every process there, and only
        then does the supervisor end. Killing from the outside in would tell us of the end too early.
        """
        self.close_input()
        pause_s = 0.001
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_S):
                while not self.ended.is_set():
                    self._kill_init()
                    await self.over_within(pause_s)
                    pause_s = min(pause_s * 2, 0.1)
        self.kill_session()
        await self.ended.wait()

    def _kill_init(self) -> None:
        with suppress(OSError, ValueError):
            found = _INIT.search((self.directory / "init").read_text())
            if found is None:
                return
            pidfd = os.pidfd_open(int(found[1]))
            try:
                # Its parent is bubblewrap, in the supervisor's session: nobody who got the pid later is.
                parent = stat(f"/proc/{found[1]}/stat")[1]
                if int(stat(f"/proc/{parent}/stat")[3]) == self.pid:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
