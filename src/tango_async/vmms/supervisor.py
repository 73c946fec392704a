"""The one process of ours beside a sandbox, and how a dispatcher follows it.

A sandbox must outlive a dispatcher that dies, so what watches over it is a small `sh` in a session of
its own. It keeps all that a successor needs in the machine's directory:

    supervisor  its line of /proc/PID/stat, with pid and start time, noted before the machine is fed
    init        bubblewrap's information, with the pid of the sandbox's first process
    pipe        the job's output on its way; a job that held a file could truncate or grow it
    output      … and where it is kept, up to a size
    guard       seconds the program may take, for when nobody is there to enforce the deadline
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
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import MachineLost
from .bootstrap import PATH

SCRIPT = r"""
newline='
'
dir=$1 output_blocks=$2 guard_s=$3 groups=$4; shift 4
cd "$dir" || exit
exec 3<>pipe 4<pipe
(
  exec </dev/null 3>&-
  ulimit -f "$output_blocks"
  if IFS= read -r first <&4; then printf '%s\n' "$first"; else printf %s "$first"; fi
  [ -f guard ] && read -r guard_s <guard
  timeout -s KILL "$guard_s" cat <&4
  case $? in
    0) exit ;;
    137) echo 124 >exit ;;
    153) echo 137 >exit ;;
  esac
  kill -KILL 0
) >>output 2>/dev/null &
collector=$!
exec 4<&-
(
  while [ -n "$groups" ]; do
    echo 0 >"${groups%%"$newline"*}/cgroup.procs" || exit 89
    groups=${groups#*"$newline"}
  done
  echo 500 >/proc/self/oom_score_adj
  exec "$@" 6>init @FILES@ 3>&-
) >&3 2>&3
code=$?
exec </dev/null 3>&-
wait "$collector"
echo "$code" >exit
"""
"""Signals stay at their defaults because the sandbox is not the asynchronous part: `sh` would have
set INT and QUIT to ignored there, and a job cannot undo that.

The collector's guard begins with the program: before, the sandbox waits for input whose other end
the dispatcher holds, and ends with it. 137 is the guard's end, 153 too much output; any other failure
leaves no record, so that the machine counts as lost."""

PIPE_BYTES = 1024**2
CHUNK_BYTES = 256 * 1024
POLL_S = (0.002, 0.05)
"""Shortest and longest pause between two looks at the output of a running program."""
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


class Supervisor:
    """A machine's supervisor as this dispatcher follows it: our child or, after adoption, anybody's."""

    def __init__(self, directory: Path, pid: int, pidfd: int, stdin: int = -1) -> None:
        self.directory = directory
        self.ended = asyncio.Event()
        self._pid = pid
        self._pidfd = pidfd
        self._stdin = stdin
        self._writable: asyncio.Future[None] | None = None
        if pidfd < 0:
            self.ended.set()
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @classmethod
    def start(cls, directory: Path, arguments: Sequence[str]) -> Supervisor:
        """Raises OSError."""
        os.mkfifo(directory / "pipe")
        (directory / "pipe").chmod(0o666)  # so that a job may open /dev/stdout, whoever it is
        (directory / "output").touch()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(writer, fcntl.F_SETFL, os.O_WRONLY | os.O_NONBLOCK)
            with suppress(PermissionError):  # beyond the user's share of pipe memory
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            # close_fds keeps this machine's input out of the next one, where its end would not be seen.
            process = subprocess.Popen(
                arguments, stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True,
                start_new_session=True, umask=0o022, env={"PATH": PATH, "LC_ALL": "C"}, cwd="/",
            )  # fmt: skip
            process.returncode = 0  # it is reaped by its pidfd here, or outlives us: Popen need not warn
            # Noted by us and not by itself: it must be there before there is anything to lose.
            (directory / "supervisor").write_text(Path(f"/proc/{process.pid}/stat").read_text())
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        return cls(directory, process.pid, os.pidfd_open(process.pid), writer)

    @classmethod
    def find(cls, directory: Path, boot_id: str) -> Supervisor:
        """That of a machine which somebody else started; `ended` is set if it lives no more."""
        pid, pidfd = _living(directory) if boot_id == this_boot() else (0, -1)
        return cls(directory, pid, pidfd)

    def _on_end(self) -> None:
        self._unfollow()
        self.close_input()
        self.ended.set()

    def _unfollow(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            os.close(self._pidfd)
            self._pidfd = -1

    def leave(self) -> None:
        """Follows it no more. A machine that still waits for files ends for want of them."""
        self._unfollow()
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

    async def output(self) -> AsyncGenerator[bytes, None]:
        """All output from the first byte, until the end. Raises MachineLost if the machine is removed."""
        try:
            file = os.open(self.directory / "output", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise MachineLost(f"sandbox {self.directory.name}: removed") from e
        pause_s = POLL_S[0]
        try:
            while True:
                over = self.ended.is_set()  # asked before the read: what came before the end is read
                if chunk := os.read(file, CHUNK_BYTES):
                    yield chunk
                    pause_s = POLL_S[0]
                    await asyncio.sleep(0)
                elif over:
                    return
                else:
                    await self._pause(pause_s)
                    pause_s = min(pause_s * 1.5, POLL_S[1])
        finally:
            os.close(file)

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self.ended.wait()

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
                    await self._pause(pause_s)
                    pause_s = min(pause_s * 2, 0.1)
        if not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            await self.ended.wait()

    def _kill_init(self) -> None:
        with suppress(OSError, ValueError):
            found = _INIT.search((self.directory / "init").read_text())
            if found is None:
                return
            pidfd = os.pidfd_open(int(found[1]))
            try:
                # Its parent is bubblewrap, in the supervisor's session: nobody who got the pid later is.
                parent = _stat(f"/proc/{found[1]}/stat")[1]
                if int(_stat(f"/proc/{parent}/stat")[3]) == self._pid:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _stat(path: str | Path) -> list[str]:
    """The fields of a stat line after the name: state, parent, group, session, … [19] the start time."""
    line = Path(path).read_text()
    return line[line.rindex(")") + 2 :].split()


def _living(directory: Path) -> tuple[int, int]:
    """The pid and a pidfd of the machine's supervisor, or (0, -1) if that process is no more."""
    record = directory / "supervisor"
    with suppress(OSError, ValueError):
        line = record.read_text()
        if not line.endswith("\n"):
            return 0, -1
        pid = int(line.split()[0])
        pidfd = os.pidfd_open(pid)
        with suppress(OSError, ValueError):
            if _stat(f"/proc/{pid}/stat")[19] == _stat(record)[19]:
                return pid, pidfd
        os.close(pidfd)
    return 0, -1


def this_boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
