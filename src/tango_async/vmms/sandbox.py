"""localSandbox: each job in a bubblewrap sandbox of its own, on this host, with no daemon.

A machine is a directory with its record, and a supervisor. This file gives the verbs; what a job sees
is in rootfs.py, how it is watched and followed in supervisor.py, its groups are in cgroup.py, and
what the host must offer is in probe.py. No process or thread of Python belongs to a job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

import msgspec

from ..config import Settings
from ..errors import ImageNotFound, MachineLost, NotStarted, VmmsError, VmmsUnavailable
from ..machine import Capabilities, Exit, InputFile, Limits, Machine, MachineSpec, Usage
from . import cgroup, probe, rootfs
from .bootstrap import after_mark, archive, ended, mark, why_not_started
from .bootstrap import command as bootstrap_command
from .keeper import OUTPUT_SLACK_BYTES, check_room, remove_directory, this_boot
from .supervisor import Supervisor
from .supervisor import command as supervisor_command

log = logging.getLogger(__name__)

UIDS = 64
"""How many uids one dispatcher has for its machines; one more would share the first's."""
PLACES = 15
UNFINISHED_S = 60.0
"""A record that was not finished so long ago never will be."""

_NEW = ".new-"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, as its directory tells whoever comes later."""

    v: int = 1
    install: str
    id: str
    spec: MachineSpec
    nonce: str
    owner: str
    boot_id: str
    groups: tuple[str, ...]
    uid: int = 0

    def machine(self) -> Machine:
        return Machine(id=self.id, spec=self.spec, nonce=self.nonce, owner=self.owner)


class LocalSandbox:
    """Sandboxes on this host. Jobs get no network but their own loopback."""

    name = "localSandbox"
    capabilities = Capabilities(adopt=True, prestart=True, cpusets=True)

    def __init__(self, settings: Settings, install: str) -> None:
        self._settings = settings
        self._install = install
        self._machines = settings.state_dir / "machines"
        self._files = settings.state_dir / "sandbox-files"
        self._images = {name.removesuffix(":latest"): root for name, root in settings.sandbox.images.items()}
        self._bwrap = settings.sandbox.bwrap
        self._nested_users = False
        self._cgroups = cgroup.Cgroups()
        self._supervisors: dict[str, Supervisor] = {}
        self._groups: dict[str, Sequence[Path]] = {}
        self._boot_id = this_boot()
        # Dispatchers of one host have numbered places, and each of them uids of its own.
        place = settings.state_dir.name
        self._first_uid = settings.sandbox.uid + UIDS * (int(place) % PLACES if place.isdecimal() else 0)
        self._uids: dict[str, int] = {}
        self._group = "tango-" + re.sub(r"[^A-Za-z0-9]", "-", install)

    async def open(self) -> None:
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        as_root, divided = os.geteuid() == 0, bool(self._settings.dispatcher.quiet_cores)
        self._bwrap = probe.programs(
            self._settings.sandbox.bwrap, as_root=as_root, on_host=self._uses_host(), pins=divided
        )
        self._nested_users = "--disable-userns" not in probe.options(self._bwrap)
        try:
            self._machines.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._files.mkdir(exist_ok=True)
            for name, content in rootfs.FILES.items():
                (self._files / name).write_bytes(content)
            self._sweep()
        except OSError as e:
            raise VmmsUnavailable(f"localSandbox: {e.filename or self._machines}: {e.strerror}") from e
        spec = MachineSpec(image=rootfs.HOST, network=False, cores=1, memory_bytes=1, processes=1, disk_bytes=1024**2)
        seen = rootfs.view(rootfs.HOST)
        files = [f"{fd}<{shlex.quote(str(self._files / name))}" for fd, name in seen.files.items()]
        probe.sandbox([*self._enter(seen, spec, self._first_uid), "/bin/sh", "-c", ":"], files)
        self._uids = {record.id: record.uid for d in self._machines.iterdir() if (record := _read(d))}
        if self._settings.sandbox.cgroup:
            self._cgroups.open(cores=divided)
        if not self._cgroups.bounds("memory"):
            log.warning("localSandbox: no writable control group for memory: what all jobs take together is unbounded")

    def _uses_host(self) -> bool:
        return rootfs.HOST in self._images.values()

    def _sweep(self) -> None:
        """Removes directories without a record: their maker died first, or a power failure emptied it.

        Nothing was started in them, or nothing lives any more.
        """
        newest = time.time() - UNFINISHED_S
        for directory in self._machines.iterdir():
            with suppress(FileNotFoundError):
                if not _has_record(directory) and directory.stat().st_mtime < newest:
                    shutil.rmtree(directory, ignore_errors=True)

    def _enter(self, seen: rootfs.View, spec: MachineSpec, uid: int) -> list[str]:
        """The command that enters a sandbox; never as root, whoever we are."""
        inside = rootfs.arguments(self._bwrap, seen, spec, nested_users=self._nested_users)
        pinned = ["taskset", "-c", spec.cpuset] if spec.cpuset else []
        if os.geteuid() != 0:
            return [*pinned, *inside]
        # Of its kin it is the quickest to start. A number with a plus is looked up nowhere.
        return [*pinned, "chroot", f"--userspec=+{uid}:+{uid}", "--groups=", "/", *inside]

    def _free_uid(self) -> int:
        """A uid that no other machine of this host has: the kernel counts pipes, watches and more by it."""
        used = set(self._uids.values())
        free = [uid for uid in range(self._first_uid, self._first_uid + UIDS) if uid not in used]
        return free[0] if free else self._first_uid

    async def close(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.leave()
        self._supervisors.clear()

    async def get_images(self) -> list[str]:
        """Raises VmmsUnavailable if there is no room for a machine: every job would be lost here."""
        check_room(self._machines, self.name)
        return sorted(name for name, root in self._images.items() if root == rootfs.HOST or Path(root).is_dir())

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        raise VmmsError("localSandbox loads no images: set a root directory in [sandbox.images]")

    def _view(self, image: str) -> rootfs.View:
        root = self._images.get(image)
        if root is None:
            raise ImageNotFound(f"localSandbox: no image {image} in [sandbox.images]")
        try:
            return rootfs.view(root)
        except OSError as e:
            raise ImageNotFound(f"localSandbox: image {image}: {root}: {e.strerror}") from e

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        seen = self._view(spec.image)
        if spec.cpuset and not self._cgroups.bounds("cpuset"):
            seen = seen.pinned()
        machine = Machine(id=secrets.token_hex(8), spec=spec, nonce=secrets.token_hex(16), owner=owner)
        group = f"{self._group}-{machine.id}"
        groups = self._groups[machine.id] = self._cgroups.directories(group)
        uid = self._uids[machine.id] = self._free_uid()
        try:
            directory = self._note(machine, groups, uid)
            self._cgroups.make(group, spec)
            command = supervisor_command(
                directory,
                [*self._enter(seen, spec, uid), *bootstrap_command(machine.nonce)],
                {fd: self._files / name for fd, name in seen.files.items()},
                output_bytes=self._settings.limits.output_stop_bytes + OUTPUT_SLACK_BYTES,
                guard_s=self._settings.limits.max_timeout_s,
                groups=groups,
            )
            self._supervisors[machine.id] = Supervisor.start(directory, command)
        except OSError as e:
            await self.destroy_vm(machine)
            raise VmmsError(f"localSandbox: a sandbox cannot be started: {e}") from e
        except VmmsError:
            await self.destroy_vm(machine)
            raise
        return machine

    def _note(self, machine: Machine, groups: Sequence[Path], uid: int) -> Path:
        """Makes the machine's directory, with its record, at once: a machine is never without."""
        record = Record(
            install=self._install, id=machine.id, spec=machine.spec, nonce=machine.nonce, owner=machine.owner,
            boot_id=self._boot_id, groups=tuple(map(str, groups)), uid=uid,
        )  # fmt: skip
        making = self._machines / (_NEW + machine.id)
        making.mkdir(mode=0o700)
        try:
            (making / "record").write_bytes(msgspec.json.encode(record))
            return making.rename(self._machines / machine.id)
        except OSError:
            shutil.rmtree(making, ignore_errors=True)
            raise

    def _record(self, directory: Path) -> Record | None:
        record = _read(directory)
        return record if record and record.install == self._install else None

    async def wait_vm(self, machine: Machine) -> None:
        """A sandbox takes files from the moment it exists; one that is dead by now says why."""
        supervisor = self._supervisor(machine)
        if supervisor.ended.is_set():
            self._check_started(machine, supervisor, supervisor.exit_code())

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        processes = 0 if self._cgroups.bounds("pids") else limits.processes
        (self._supervisor(machine).directory / "guard").write_text(f"{limits.timeout_s}\n")
        async with aclosing(archive(files, machine.nonce, limits, processes=processes, timed=False)) as chunks:
            await self.feed(machine, chunks)

    async def feed(self, machine: Machine, chunks: AsyncIterator[bytes]) -> None:
        """Sends the bytes to the bootstrap and ends its input, also when `chunks` fails.

        Raises NotStarted if the bootstrap gives up before.
        """
        supervisor = self._supervisor(machine)
        try:
            async for chunk in chunks:
                await supervisor.write(chunk)
        except BrokenPipeError:
            await self.run_job(machine)
        finally:
            supervisor.close_input()

    async def run_job(self, machine: Machine) -> Exit:
        supervisor = self._supervisor(machine)
        await supervisor.ended.wait()
        code = supervisor.exit_code()
        self._check_started(machine, supervisor, code)
        return ended(code, out_of_memory=cgroup.out_of_memory(self._groups_of(machine)))

    def _groups_of(self, machine: Machine) -> Sequence[Path]:
        known = self._groups.get(machine.id)
        if known is None:
            record = self._record(self._machines / machine.id)
            known = [Path(group) for group in record.groups] if record else ()
        return known

    def _check_started(self, machine: Machine, supervisor: Supervisor, code: int) -> None:
        try:
            with (supervisor.directory / "output").open("rb") as output:
                head = output.read(4096)
        except OSError as e:
            raise MachineLost(f"sandbox {machine.id}: its output is gone: {e.strerror}") from e
        if not head.startswith(mark(machine.nonce)):
            raise NotStarted(why_not_started(code, head))

    async def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        async with aclosing(self._supervisor(machine).output()) as output:
            async for chunk in after_mark(output, machine.nonce):
                yield chunk

    async def usage(self, machine: Machine) -> Usage | None:
        return cgroup.usage(self._groups_of(machine))

    async def destroy_vm(self, machine: Machine) -> None:
        directory = self._machines / machine.id
        supervisor = self._supervisors.get(machine.id)
        if supervisor is None:
            record = self._record(directory)
            supervisor = Supervisor.find(directory, record.boot_id if record else "")
        await supervisor.kill()
        await cgroup.remove(self._groups_of(machine))
        self._supervisors.pop(machine.id, None)
        await asyncio.to_thread(remove_directory, directory)
        self._groups.pop(machine.id, None)
        self._uids.pop(machine.id, None)

    async def get_vms(self) -> list[Machine]:
        try:
            found = [self._record(directory) for directory in sorted(self._machines.iterdir())]
        except OSError as e:
            raise VmmsUnavailable(f"localSandbox: {self._machines}: {e.strerror}") from e
        return [record.machine() for record in found if record]

    async def adopt(self, machine: Machine) -> None:
        self._supervisor(machine)
        self._cgroups.limit_again(f"{self._group}-{machine.id}", machine.spec)

    def _supervisor(self, machine: Machine) -> Supervisor:
        """The machine's supervisor, found again if this instance does not follow it yet."""
        known = self._supervisors.get(machine.id)
        if known is None:
            directory = self._machines / machine.id
            record = self._record(directory)
            if record is None:
                raise MachineLost(f"sandbox {machine.id}: there is no such machine")
            known = self._supervisors[machine.id] = Supervisor.find(directory, record.boot_id)
        return known


def _read(directory: Path) -> Record | None:
    try:
        return msgspec.json.decode((directory / "record").read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def _has_record(directory: Path) -> bool:
    return not directory.name.startswith(_NEW) and _read(directory) is not None
