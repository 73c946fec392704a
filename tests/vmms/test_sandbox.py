"""localSandbox: the contract, and what only a process on this host can show."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from contracts.machines import MB, Backend, Ran, first_output, follow, inputs, limit, make, processes, wait_until
from contracts.vmms import Hostile, VmmsContract
from tango_async.config import Limits, Sandbox, Settings, Store
from tango_async.errors import ImageNotFound, MachineLost, NotStarted, VmmsUnavailable
from tango_async.machine import Exit
from tango_async.vmms import cgroup
from tango_async.vmms.keeper import OUTPUT_SLACK_BYTES
from tango_async.vmms.sandbox import UIDS, LocalSandbox

INSTALL = f"test-{os.getpid()}"
TESTS = Path(__file__).parents[1]
IMPORTABLE = {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
UID = 40_000 + os.getpid() % 300 * UIDS
"""The first of this run's jobs only, so that what one leaves behind can be told from others' work."""

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("CI") != "true", reason="bubblewrap is not installed"
)


def settings_of(data_dir: Path, **sandbox: object) -> Settings:
    return Settings(store=Store(data_dir=data_dir), sandbox=Sandbox(uid=UID, **sandbox))  # type: ignore[arg-type]


def groups() -> set[Path]:
    return {group for h in cgroup.find() for group in h.base.glob(f"tango-{INSTALL}-*")}


def of_jobs() -> list[str]:
    """Processes with this run's uid, and zombies that we have not reaped; other zombies are the host's init's.

    `sandboxes` asks for what is new, since other tests may keep a dead child of theirs for a while.
    """
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        zombie = text["State"].strip().startswith("Z")
        if text["PPid"].strip() == str(os.getpid()) if zombie else UID <= int(text["Uid"].split()[0]) < UID + UIDS:
            found.append(f"{status.parent.name} {text['Name'].strip()}")
    return found


@asynccontextmanager
async def sandboxes(settings: Settings) -> AsyncIterator[Backend]:
    """A back-end that must leave nothing behind."""

    async def opened() -> LocalSandbox:
        vmms = LocalSandbox(settings, INSTALL)
        await vmms.open()
        return vmms

    before = set(of_jobs())
    vmms = await opened()
    yield Backend(opened, vmms, "autograding_image", settings.store.data_dir)
    assert await vmms.get_vms() == []
    await vmms.close()
    assert list((settings.state_dir / "machines").iterdir()) == []
    await wait_until(lambda: not set(of_jobs()) - before, f"no process is left of {set(of_jobs()) - before}")
    await wait_until(lambda: not processes(str(settings.state_dir)), "no supervisor is left")
    await wait_until(lambda: not groups(), "no control group is left")


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    async with sandboxes(settings_of(tmp_path)) as backend:
        yield backend


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that others than the tests' user can reach, as an image must be; `tmp_path` is private."""
    with tempfile.TemporaryDirectory(prefix="tango-public-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


class TestLocalSandbox(VmmsContract):
    """The contract, with control groups where this host has writable ones."""


class TestWithoutControlGroups(Hostile):
    """What a user namespace of the job's own can bound where no control group is writable."""

    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        async with sandboxes(settings_of(tmp_path, cgroup=False)) as backend:
            yield backend


DISPATCHER = """
import asyncio, sys
from pathlib import Path
from contracts.machines import Backend, inputs, limit, make
from tango_async.config import Limits, Sandbox, Settings, Store
from tango_async.vmms.sandbox import LocalSandbox

async def main(data_dir, uid, install, *lines):
    vmms = LocalSandbox(Settings(store=Store(data_dir=Path(data_dir)), sandbox=Sandbox(uid=int(uid))), install)
    await vmms.open()
    machine = await vmms.initialize_vm(Backend(None, vmms, "autograding_image", None).spec(), "killed")
    if lines:
        await vmms.copy_in(machine, inputs(make(*lines)), limit())
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def killed_dispatcher(data_dir: Path, *lines: str) -> None:
    """A dispatcher that made one machine, gave it these lines to run, if any, and died by SIGKILL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DISPATCHER, str(data_dir), str(UID), INSTALL, *lines,
        stdout=subprocess.PIPE, env=os.environ | IMPORTABLE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.kill()
    await process.wait()


async def test_a_job_outlives_its_killed_dispatcher(backend: Backend) -> None:
    await killed_dispatcher(backend.data_dir, *(f"echo {i}; sleep 0.1" for i in range(5)))
    [machine] = await backend.vmms.get_vms()
    assert machine.owner == "killed"
    await backend.vmms.adopt(machine)
    assert await follow(backend.vmms, machine) == Ran(Exit(0), b"0\n1\n2\n3\n4\n")
    await backend.vmms.destroy_vm(machine)


async def test_an_idle_machine_ends_with_its_dispatcher(backend: Backend) -> None:
    await killed_dispatcher(backend.data_dir)
    [machine] = await backend.vmms.get_vms()
    await wait_until((directory_of(backend, machine.id) / "exit").exists, "the idle machine noted its end")
    await wait_until(lambda: not processes(str(backend.data_dir)), "the idle machine is gone")
    await backend.vmms.adopt(machine)
    with pytest.raises(NotStarted, match=r"incompletely|unpacked"):
        await backend.vmms.run_job(machine)
    await backend.vmms.destroy_vm(machine)


async def test_other_machines_do_not_hold_an_idle_ones_input(backend: Backend) -> None:
    async with backend.machine() as idle, backend.machine():
        await backend.vmms.feed(idle, inputs({"nothing": ""})[0].chunks())
        with pytest.raises(NotStarted):
            await backend.vmms.run_job(idle)


async def test_no_job_reaches_its_timer(backend: Backend) -> None:
    ran = await backend.run(make("kill -STOP 1 -1; echo stopped; exec sleep 600"), limit(timeout_s=1))
    assert ran == Ran(Exit(124, timed_out=True), b"stopped\n")


async def test_the_supervisor_ends_endless_output(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(settings_of(tmp_path), limits=SmallOutput)
    async with sandboxes(settings) as backend, backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make("exec yes")), limit())
        ran = await follow(backend.vmms, machine)
    assert ran.code == 137
    assert SmallOutput.output_stop_bytes < len(ran.output) <= SmallOutput.output_stop_bytes + OUTPUT_SLACK_BYTES


SmallOutput = Limits(output_stop_bytes=MB)


async def test_a_killed_supervisor_takes_the_job_with_it(backend: Backend) -> None:
    marker = f"3{os.getpid()}{id(backend) % 10**6}"
    async with backend.machine() as machine:
        await backend.vmms.copy_in(machine, inputs(make(f"echo up; sleep {marker}")), limit())
        assert await first_output(backend.vmms, machine) == b"up\n"
        os.kill(int((directory_of(backend, machine.id) / "supervisor").read_text().split()[0]), signal.SIGKILL)
        with pytest.raises(MachineLost):
            await backend.vmms.run_job(machine)
        await wait_until(lambda: not processes(marker), "the job is gone")


@pytest.mark.parametrize("record", [{}, {"boot_id": "before"}])
async def test_a_machine_of_before_a_crash_or_reboot_is_lost_and_removed(
    backend: Backend, record: dict[str, str]
) -> None:
    """A record with nothing started, and one whose processes another boot took away."""
    async with backend.machine() as machine:
        directory = directory_of(backend, machine.id)
        noted = msgspec.json.decode((directory / "record").read_bytes())
        started = (directory / "supervisor").read_text() if record else ""
    directory.mkdir()
    (directory / "record").write_bytes(msgspec.json.encode(noted | record))
    if started:
        (directory / "supervisor").write_text(started)
    successor = await backend.open()
    assert await successor.get_vms() == [machine]
    await successor.adopt(machine)
    with pytest.raises(MachineLost):
        await successor.run_job(machine)
    await successor.destroy_vm(machine)
    await successor.close()


async def test_a_successor_sets_the_limits_of_a_running_job_anew(backend: Backend) -> None:
    """A systemd that starts the dispatcher's unit again may have taken them from its groups."""
    if not any("pids" in h.controllers for h in cgroup.find()) or os.geteuid() != 0:
        pytest.skip("no writable control group for processes")
    async with backend.machine() as machine:
        limits = [group / "pids.max" for group in groups() if (group / "pids.max").exists()]
        before = [file.read_text() for file in limits]
        for file in limits:
            file.write_text("max")
        successor = await backend.open()
        await successor.adopt(machine)
        assert [file.read_text() for file in limits] == before != []
        await successor.close()


async def test_directories_without_a_record_are_swept(backend: Backend) -> None:
    unfinished, emptied, young = (directory_of(backend, name) for name in (".new-old", "emptied", ".new-young"))
    for directory in (unfinished, emptied, young):
        directory.mkdir()
    (emptied / "record").touch()
    os.utime(unfinished, (0, 0))
    os.utime(emptied, (0, 0))
    await (await backend.open()).close()
    assert not unfinished.exists() and not emptied.exists() and young.exists()
    young.rmdir()


async def test_memory_is_bounded_where_a_control_group_is(backend: Backend) -> None:
    if not any("memory" in h.controllers for h in cgroup.find()) or os.geteuid() != 0:
        pytest.skip("no writable control group for memory")
    ran = await backend.run(make("head -c 100000000 /dev/zero | tail"), memory_bytes=32 * MB)
    assert ran.exit.out_of_memory and ran.code == 2
    ran = await backend.run(make("dd if=/dev/zero of=/tmp/x bs=1M count=60"), memory_bytes=32 * MB)
    assert ran.exit.out_of_memory


async def test_a_job_can_make_no_namespace_and_write_no_system_file(backend: Backend) -> None:
    tries = [
        "unshare -U true",
        "unshare -Ur true",
        "touch /x",
        "touch /dev/x",
        "touch /etc/x",
        "touch /usr/x",
        "mkdir /var/x",
    ]
    ran = await backend.run(
        make(*(f"if {t} 2>/dev/null; then echo '{t}'; fi" for t in tries), "rm -f /etc/passwd || echo safe")
    )
    assert ran.output.splitlines()[-1] == b"safe" and len(ran.output.splitlines()) == 2


KEYRINGS = """\
import ctypes, errno, os
call = ctypes.CDLL(None, use_errno=True).syscall
add_key, request_key, keyctl = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[os.uname().machine]
session = ctypes.c_int(-3)
for tried in (
    lambda: call(add_key, b"user", b"note", b"to others", ctypes.c_size_t(9), session),
    lambda: call(request_key, b"user", b"note", None, session),
    lambda: call(keyctl, 0, session, 1),
    lambda: call(425, 8, ctypes.create_string_buffer(200)),
):
    print(tried(), errno.errorcode[ctypes.get_errno()])
"""


async def test_a_job_leaves_no_note_in_the_keyring_of_the_service(backend: Backend) -> None:
    ran = await backend.run({"keyrings.py": KEYRINGS} | make("python3 keyrings.py"))
    assert ran == Ran(Exit(0), b"-1 ENOSYS\n" * 4)


async def test_the_host_is_reduced_to_its_system_directories(backend: Backend) -> None:
    ran = await backend.run(make("ls /", "ls /etc /var /home", "whoami; hostname"))
    top, rest = ran.output.split(b"/etc:")
    assert set(top.split()) <= set(b"bin dev etc home lib lib32 lib64 libx32 proc sbin tmp usr var".split())
    assert rest.split() == (
        b"alternatives group hosts ld.so.cache nsswitch.conf passwd /home: autograde /var: tmp autograde tango".split()
    )


async def test_a_directory_is_an_image(tmp_path: Path, public_path: Path) -> None:
    root = image_of(public_path, "sh", "make", "tar", "timeout", "mkdir", "rm", "id", "ls", "cat")
    settings = settings_of(tmp_path / "data", images={"small:latest": str(root), "gone": str(tmp_path / "gone")})
    async with sandboxes(settings) as backend:
        assert await backend.vmms.get_images() == ["small"]
        ran = await backend.run(make("id -un; id -u; cat /marker; ls /usr /home"), image="small")
        assert ran == Ran(Exit(0), b"autograde\n4711\nof the image\n/home:\nautograde\n\n/usr:\nbin\nlib\n")
        with pytest.raises(ImageNotFound, match="gone"):
            await backend.vmms.initialize_vm(backend.spec(image="gone"), "tester")


def image_of(root: Path, *programs: str) -> Path:
    """A root directory with these programs of the host and what they are linked to."""
    for directory in ("usr/bin", "usr/lib", "etc"):
        (root / directory).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name.removesuffix('64')}")
    for program in programs:
        path = shutil.which(program)
        assert path is not None
        shutil.copy(path, root / "usr/bin" / program)
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for library in {word for word in linked.split() if word.startswith("/")}:
            shutil.copy(library, root / "usr/lib")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nautograde:x:4711:4712::/home/autograde:/bin/sh\n")
    (root / "marker").write_text("of the image\n")
    return root


def directory_of(backend: Backend, machine_id: str) -> Path:
    return backend.data_dir / "dispatcher/machines" / machine_id


class TestWhatIsMissing:
    """`open` names what to install or to change, and never does with less."""

    async def refusal(self, settings: Settings) -> str:
        with pytest.raises(VmmsUnavailable) as caught:
            await LocalSandbox(settings, INSTALL).open()
        return str(caught.value)

    async def test_bubblewrap(self, tmp_path: Path) -> None:
        assert "apt-get install bubblewrap" in await self.refusal(settings_of(tmp_path, bwrap="no-such-bwrap"))

    async def test_a_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bwrap = str(shutil.which("bwrap"))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "apt-get install dash" in await self.refusal(settings_of(tmp_path, bwrap=bwrap))

    async def test_an_old_bubblewrap(self, tmp_path: Path) -> None:
        old = tmp_path / "bwrap"
        old.write_text("#!/bin/sh\n[ $1 = --version ] && echo bubblewrap 0.4.1 || echo '    --as-pid-1'\n")
        old.chmod(0o755)
        assert "bubblewrap 0.4.1 has no --size" in await self.refusal(settings_of(tmp_path, bwrap=str(old)))

    @pytest.mark.skipif(os.geteuid() != 0, reason="sets a limit in a user namespace of its own")
    def test_user_namespaces(self) -> None:
        """The limit belongs to a user namespace, so that a nested one can be without."""
        sandbox = ["bwrap", "--unshare-user", "--bind", "/", "/", "true"]
        code = f"from tango_async.vmms import probe; probe.sandbox({sandbox}, [])"
        forbid = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
        ran = subprocess.run(
            ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "user.max_user_namespaces = 0" in ran.stderr and "sysctl -w" in ran.stderr


def test_no_privilege_is_needed(public_path: Path) -> None:
    """The dispatcher as an ordinary user: nothing of it needs root."""
    if os.geteuid() != 0:
        pytest.skip("not root: all other tests show it")
    data_dir = public_path / "data"
    data_dir.mkdir()
    somebody = UID + 1
    shutil.chown(data_dir, somebody, somebody)
    ran = subprocess.run(
        [sys.executable, "-c", AS_SOMEBODY, str(data_dir), str(somebody)],
        env=os.environ | IMPORTABLE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


AS_SOMEBODY = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from vmms.test_sandbox import unprivileged
somebody = int(sys.argv[2])
os.setgroups([])
os.setresgid(somebody, somebody, somebody)
os.setresuid(somebody, somebody, somebody)
sys.exit(asyncio.run(unprivileged(Path(sys.argv[1]))))
"""
"""Imports all there is before: who it becomes may not be able to read it."""


async def unprivileged(data_dir: Path) -> int:
    async with sandboxes(settings_of(data_dir)) as backend:
        ran = await backend.run(make("id -u; echo out >/dev/stdout"))
    return 0 if ran == Ran(Exit(0), b"1001\nout\n") else 2


@pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")
async def test_control_groups_of_version_2() -> None:
    """Controllers are handed on although processes are in the group; what is in a group can be ended with it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    top = next((Path(m[1]) for m in mounts if m[2] == "cgroup2"), None)
    if top is None:
        pytest.skip("no cgroup v2 is mounted")
    base = top / f"tango-{INSTALL}-delegated"
    base.mkdir()
    with subprocess.Popen(["sleep", "600"]) as inside, subprocess.Popen(["sleep", "600"]) as beside:
        (base / "cgroup.procs").write_text(str(inside.pid))
        offered = frozenset((base / "cgroup.controllers").read_text().split())
        cgroup.enable(cgroup.Hierarchy(base, 2, offered))
        assert frozenset((base / "cgroup.subtree_control").read_text().split()) == offered
        (base / "job").mkdir()
        (base / "job/cgroup.procs").write_text(str(beside.pid))
        assert not cgroup.out_of_memory([base / "job"])
        await cgroup.remove([base / "job"])
        assert beside.wait() == -signal.SIGKILL and inside.poll() is None
        await cgroup.remove([base / "dispatcher"] if offered else [])
        inside.kill()
    await cgroup.remove([base])


async def test_no_two_machines_have_one_uid(backend: Backend) -> None:
    """The kernel counts inotify watches, pipe pages and message queues by uid: no limit is shared."""
    async with backend.machine() as one, backend.machine() as two:
        for machine in (one, two):
            await backend.vmms.copy_in(machine, inputs(make("echo up; sleep 60")), limit())
            assert await first_output(backend.vmms, machine) == b"up\n"
        uids = set()
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):  # others come and go
                uids |= {int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("Uid:")}
        assert len(uids & {*range(UID, UID + UIDS)}) == 2
