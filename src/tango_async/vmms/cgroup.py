"""Groups that bound a sandbox's memory, processes and processor, where this process may make them.

Version 1: a directory below our own in each of the hierarchies pids, memory and cpu. Version 2: below
our own group if systemd delegated it to us (`Delegate=yes`), or its parent (`DelegateSubgroup=`), or
below the root. Anybody else's group is left alone, though root could write there.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import VmmsError
from ..machine import MachineSpec, Usage

CONTROLLERS = ("pids", "memory", "cpu")
OF_CORES = ("cpuset", "cpuacct")
"""Used where some cores are kept for quiet jobs. Version 2 counts with `cpu`."""
OWN_PROCESSES = 5
"""Bubblewrap and the bootstrap are in the group beside the job's own processes."""
PERIOD_US = 100_000
REMOVE_S = 5.0

_LEAF = "dispatcher"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A directory in which groups can be made, and what they can limit there."""

    base: Path
    version: int
    controllers: frozenset[str]

    def limits(self, spec: MachineSpec) -> Iterator[tuple[str, str]]:
        """File of a group → what to write there."""
        quota = max(1000, int(spec.cores * PERIOD_US))
        if "pids" in self.controllers:
            yield "pids.max", str(spec.processes + OWN_PROCESSES)
        if "memory" in self.controllers and self.version == 1:
            yield "memory.limit_in_bytes", str(spec.memory_bytes)
            yield "memory.memsw.limit_in_bytes", str(spec.memory_bytes)
        if "memory" in self.controllers and self.version == 2:
            yield "memory.max", str(spec.memory_bytes)
            yield "memory.swap.max", "0"
        if "cpu" in self.controllers and self.version == 1:
            yield "cpu.cfs_period_us", str(PERIOD_US)
            yield "cpu.cfs_quota_us", str(quota)
        if "cpu" in self.controllers and self.version == 2:
            yield "cpu.max", f"{quota} {PERIOD_US}"
        if "cpuset" in self.controllers:
            if self.version == 1:  # where a group has neither until they are set
                yield "cpuset.mems", (self.base / "cpuset.mems").read_text()
            if spec.cpuset or self.version == 1:
                yield "cpuset.cpus", spec.cpuset or (self.base / "cpuset.cpus").read_text()


OPTIONAL = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max", "cpu.cfs_period_us", "cpu.cfs_quota_us"})
"""Files that kernels without swap accounting or bandwidth control do not have."""


class Cgroups:
    """Makes a sandbox's groups. `open` finds where; without it there are none."""

    def __init__(self) -> None:
        self._hierarchies: list[Hierarchy] = []

    def open(self, *, cores: bool = False) -> None:
        """`cores`: also those that keep machines to some cores."""
        wanted = (*CONTROLLERS, *OF_CORES) if cores else CONTROLLERS
        self._hierarchies = [h for h in find(wanted) if _makes_groups(h)]

    def bounds(self, controller: str) -> bool:
        return any(controller in h.controllers for h in self._hierarchies)

    def directories(self, name: str) -> list[Path]:
        return [h.base / name for h in self._hierarchies]

    def make(self, name: str, spec: MachineSpec) -> None:
        """Raises VmmsError if a limit cannot be set: a job must not run without one that was promised."""
        for h in self._hierarchies:
            group = h.base / name
            try:
                group.mkdir()
                _limit(group, h, spec)
            except OSError as e:
                raise VmmsError(f"control group {group}: {e.strerror}") from e

    def limit_again(self, name: str, spec: MachineSpec) -> None:
        """Sets the limits anew. A unit that is started again while jobs run has had to give up its
        controllers, and the groups below have lost their limits with them (deploy/systemd).
        """
        for h in self._hierarchies:
            group = h.base / name
            try:
                if group.exists():
                    _limit(group, h, spec)
            except OSError as e:
                raise VmmsError(f"control group {group}: {e.strerror}") from e


def _limit(group: Path, h: Hierarchy, spec: MachineSpec) -> None:
    for file, value in h.limits(spec):
        try:
            control = os.open(f"{group}/{file}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if file not in OPTIONAL:
                raise
            continue
        try:
            os.write(control, value.encode())
        finally:
            os.close(control)


def find(wanted: Collection[str] = CONTROLLERS) -> list[Hierarchy]:
    """The hierarchies that hold us and have some of these controllers, whether or not groups can be made there."""
    paths: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    found: list[Hierarchy] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, mount = (_unescape(field) for field in before.split()[3:5])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup":
            held = set(options.split(",")) & set(wanted) & paths.keys()
            own = _own(mount, root, paths[min(held)]) if held else None
            if own:
                found.append(Hierarchy(own, 1, frozenset(held)))
        elif kind == "cgroup2" and "" in paths:
            own = _own(mount, root, paths[""])
            base = own and _delegated(own, wanted)
            if base:
                found.append(base)
    return list(dict.fromkeys(found))


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def _own(mount: str, root: str, path: str) -> Path | None:
    try:
        below = Path(path).relative_to(root)
    except ValueError:
        return None
    return Path(mount) / below


def _delegated(own: Path, wanted: Collection[str]) -> Hierarchy | None:
    if not (own / "cgroup.type").exists():
        base = own  # only the true root has no type; processes may stay in it
    elif _marked(own):
        base = own
    elif _marked(own.parent):
        base = own.parent
    else:
        return None
    try:
        offered = frozenset((base / "cgroup.controllers").read_text().split()) & set(wanted)
    except OSError:
        return None
    return Hierarchy(base, 2, offered) if offered else None


def _marked(group: Path) -> bool:
    """Whether systemd delegated this group; it says so in an extended attribute since version 236."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _makes_groups(h: Hierarchy) -> bool:
    probe = h.base / f"tango-probe-{os.getpid()}"
    try:
        if h.version == 2:
            enable(h)
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def enable(h: Hierarchy) -> None:
    """Hands the controllers of version 2 on to the groups below. Raises OSError."""
    control = h.base / "cgroup.subtree_control"
    if h.controllers <= frozenset(control.read_text().split()):
        return
    wanted = " ".join(f"+{c}" for c in sorted(h.controllers))
    try:
        control.write_text(wanted)
    except OSError:
        # A group below the root cannot hold processes and hand controllers on.
        leaf = h.base / _LEAF
        leaf.mkdir(exist_ok=True)
        for pid in _pids(h.base):
            with suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(str(pid))
        control.write_text(wanted)


def _pids(group: Path) -> list[int]:
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def kill(groups: Iterable[Path]) -> None:
    """Sends KILL to whatever is in the groups now."""
    for group in groups:
        with suppress(OSError):
            (group / "cgroup.kill").write_text("1")
            continue
        for pid in _pids(group):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


async def remove(groups: Sequence[Path]) -> None:
    """Kills what is in the groups and removes them. Raises VmmsError if something in there cannot die."""
    delay_s, left = 0.001, list(groups)
    try:
        async with asyncio.timeout(REMOVE_S):
            while left := [group for group in left if not _removed(group)]:
                kill(left)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 0.05)
    except TimeoutError as e:
        raise VmmsError(f"control group {left[0]} cannot be removed: {len(_pids(left[0]))} processes live on") from e


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def out_of_memory(groups: Iterable[Path]) -> bool:
    """Whether the kernel killed a process of the groups for want of memory."""
    for group in groups:
        for file in ("memory.oom_control", "memory.events"):
            told = _OOM_KILL.search(_read(f"{group}/{file}"))
            if told is not None and int(told[1]) > 0:
                return True
    return False


_OOM_KILL = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def _read(path: str) -> bytes:
    """A short file's content; nothing if there is none, or its group is gone."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(file, 4096)
    except OSError:
        return b""
    finally:
        os.close(file)


def usage(groups: Iterable[Path]) -> Usage | None:
    """What the processes of the groups have used, also those that have ended; None where nothing counts it."""
    found: dict[str, int] = {}
    for group in groups:
        with suppress(OSError):
            found["cpuacct.usage"] = int((group / "cpuacct.usage").read_text())
        with suppress(OSError):
            found |= {name: int(value) for name, value in map(str.split, (group / "cpu.stat").read_text().splitlines())}
    used_s = found.get("cpuacct.usage", 0) / 1e9 + found.get("usage_usec", 0) / 1e6
    throttled_s = found.get("throttled_time", 0) / 1e9 + found.get("throttled_usec", 0) / 1e6
    return Usage(used_s, throttled_s) if {"cpuacct.usage", "usage_usec"} & found.keys() else None
