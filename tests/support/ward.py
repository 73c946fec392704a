"""What a test left: a process, a temporary directory, a container, a Redis key. support/strays.py asks after each.

What fixtures of a wider scope than a test hold is theirs. Everything is told by this run's own marks, so that other
runs on the machine are never blamed: children by their parent, other processes by the run's directories in their
command line, temporary files by a directory of the run's own, containers by the installs that the test made. What is
found has a moment to go by itself; then it is removed, so that one test fails and not all after it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support.engine import Engine
from support.redis_server import RedisServer
from tango_async.vmms.docker import INSTALL

PREFIX = re.compile(rb"[a-z][0-9a-f]{12}:")
"""How the keys of every test begin."""

WITHIN_S = 60.0
_LOOK_S = 0.05
_EXEC_S = 5.0
_KTHREADD = 2


class Ward:
    """What is there and who may have it."""

    def __init__(self, basetemp: Path) -> None:
        self.basetemp = basetemp
        self.temporary = Path(tempfile.mkdtemp(prefix="tt-"))
        # Sandboxes run as other users, who must come through.
        self.temporary.chmod(0o755)
        self.redis: RedisServer | None = None
        self.engine: Engine | None = None
        self.installs: list[tuple[Engine, str]] = []
        self._kept_pids: set[int] = set()
        self._kept_paths: set[Path] = set()
        self._seen: set[int] = set()

    def close(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)

    def begin(self) -> None:
        """Processes that are there before a test are none of it."""
        self._seen = _pids()
        self.installs.clear()

    def there(self) -> tuple[set[int], set[Path]]:
        """Our children, and our temporary files."""
        return {pid for pid in _pids() if _parent(pid) == os.getpid()}, self._paths()

    def keep(self, before: tuple[set[int], set[Path]]) -> None:
        """What has come since stays for other tests."""
        pids, paths = self.there()
        self._kept_pids |= pids - before[0]
        self._kept_paths |= paths - before[1]

    def after(self, directory: Path | None) -> list[str]:
        """What a test with that directory left, after it had time to go."""
        for place in directory.glob("data/dispatcher/*/install") if directory and self.engine else ():
            assert self.engine is not None
            self.installs.append((self.engine, place.read_text().strip()))
        end = time.monotonic() + WITHIN_S
        while (found := self._look()) and time.monotonic() < end:
            time.sleep(_LOOK_S)
        for _, remove in found:
            remove()
        if self.redis is not None:
            self.redis.empty()
        return [what for what, _ in found]

    def _look(self) -> list[tuple[str, Callable[[], object]]]:
        """What there is, and how to remove each."""
        found: list[tuple[str, Callable[[], object]]] = []
        for pid, command in self._processes().items():
            found.append((f"process {pid}: {command[:200]}", lambda pid=pid: _kill(pid)))
        for path in self._paths() - self._kept_paths:
            found.append((f"directory {path}", lambda path=path: shutil.rmtree(path, ignore_errors=True)))
        for engine, install in self.installs:
            for container in engine.containers(f"{INSTALL}={install}") if engine.answers() else ():
                found.append((f"container {container[:12]}", lambda e=engine, c=container: e.remove(c)))
        for key in self.redis.keys() if self.redis is not None else ():
            if not PREFIX.match(key):
                found.append((f"key {key.decode(errors='replace')}", lambda: None))
        return found

    def _paths(self) -> set[Path]:
        engines = Path("/var/tmp").glob(f"tango-engine-{os.getpid()}-*")
        return {*self.temporary.iterdir(), *engines}

    def _processes(self) -> dict[int, str]:
        """New ones that are our children, or have a directory of this run in their command line."""
        found = {}
        for pid in _pids() - self._seen - self._kept_pids:
            command = _command(pid)
            ours = str(self.basetemp) in command or str(self.temporary) in command or _parent(pid) == os.getpid()
            if command and ours and not any(str(path) in command for path in self._kept_paths):
                found[pid] = command
        return found


def _pids() -> set[int]:
    return {int(name) for name in (path.name for path in Path("/proc").iterdir()) if name.isdecimal()}


def _command(pid: int) -> str:
    """Empty for one that is gone, or dead and not reaped, and for the kernel's own."""
    end = time.monotonic() + _EXEC_S
    with suppress(OSError):
        while not (command := Path(f"/proc/{pid}/cmdline").read_bytes()) and _is_beginning(pid):
            if time.monotonic() > end:
                return "(unknown)"
            time.sleep(0.001)
        return command.replace(b"\0", b" ").decode(errors="replace")
    return ""


def _is_beginning(pid: int) -> bool:
    """Whether one without a command line has yet to get it: in the middle of exec(2) there is none."""
    state, parent = _stat(pid)
    return state not in "ZX" and parent not in (0, _KTHREADD)


def _parent(pid: int) -> int:
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    """Its state and its parent; X and 0 for one that is gone."""
    with suppress(OSError):
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        return state, int(parent)
    return "X", 0


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
