"""The units are what systemd understands, and the services do what the units count on.

That a sandbox outlives the unit's main process, which is all that KillMode=process ends, and that the
next dispatcher takes it over, is told in stories/test_crashes.py. No systemd runs here: its part is
played by a socket and by signals.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import absent
from support.notify import Listener, start
from support.service import SCRIPTS, Service
from tango_async import config
from tango_async.notify import Supervisor

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.*"))
BIN = "/opt/tango/bin"
"""Where the units expect the console scripts, as docs/operating.md installs them."""

BREAKS_SANDBOXES = {
    "RestrictNamespaces", "ProtectHostname", "ProtectControlGroups", "ProtectKernelTunables", "ProtectKernelLogs",
    "ProcSubset", "SystemCallArchitectures", "LockPersonality", "MemoryDenyWriteExecute", "RestrictSUIDSGID",
}  # fmt: skip


def directives(name: str) -> dict[str, str]:
    lines = (DEPLOY / "systemd" / name).read_text().splitlines()
    return dict(re.findall(r"^(\w+)=(.*)$", "\n".join(lines), re.MULTILINE))


# -- the files -------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Copies whose programs exist."""
    if shutil.which("systemd-analyze") is None:
        absent("systemd-analyze is not installed: apt-get install systemd")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(BIN, str(SCRIPTS)))
    return [str(tmp_path / unit.name) for unit in UNITS]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_systemd_understands_every_line(units: list[str]) -> None:
    found = analyze("verify", "--man=no", "--recursive-errors=no", *units)
    # It ends with 0 also when a key is unknown, but says so.
    assert (found.returncode, found.stderr) == (0, "")


def test_that_check_would_see_a_misspelt_key(units: list[str]) -> None:
    unit = Path(next(u for u in units if "dispatcher" in u))
    unit.write_text(unit.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in analyze("verify", "--man=no", "--recursive-errors=no", *units).stderr


@pytest.mark.parametrize(("name", "tenths"), [("tango-http@.service", 15), ("tango-dispatcher.service", 42)])
def test_units_are_as_exposed_as_they_must_be_and_no_more(units: list[str], name: str, tenths: int) -> None:
    found = analyze("security", "--offline=true", f"--threshold={tenths}", next(u for u in units if name in u))
    assert found.returncode == 0, found.stdout[-300:]


def test_the_dispatcher_is_not_denied_what_its_sandboxes_need() -> None:
    assert not BREAKS_SANDBOXES & directives("tango-dispatcher.service").keys()


def test_a_stop_leaves_the_sandboxes_and_waits_as_long_as_the_dispatcher_may_take() -> None:
    unit, settings = directives("tango-dispatcher.service"), config.load(DEPLOY / "tango.toml", environ={})
    assert (unit["KillMode"], unit["Delegate"], unit["OOMPolicy"]) == ("process", "yes", "continue")
    assert int(unit["TimeoutStopSec"]) >= settings.dispatcher.grace_s + settings.dispatcher.finish_s + 30


def test_a_stop_gives_the_controllers_up_so_that_a_start_finds_room_beside_running_jobs(tmp_path: Path) -> None:
    """What the unit's ExecStopPost= writes; it runs in the group `.control` below the unit's own."""
    command = directives("tango-dispatcher.service")["ExecStopPost"]
    script = command.removeprefix("-/bin/sh -c '").removesuffix("'").replace("$$", "$").replace("%%", "%")
    group = tmp_path / "system.slice" / "tango-dispatcher.service"
    (group / ".control").mkdir(parents=True)
    control = group / "cgroup.subtree_control"
    control.write_text("cpu memory pids\n")
    (tmp_path / "self").write_text("0::/system.slice/tango-dispatcher.service/.control\n")
    # A file keeps what is written last, so each write goes to a log here.
    script = script.replace("/proc/self/cgroup", f"{tmp_path}/self").replace("/sys/fs/cgroup", str(tmp_path))
    script = script.replace(">cgroup.subtree_control", f">>{tmp_path}/written")
    subprocess.run(["/bin/sh", "-c", script], check=True)
    assert (tmp_path / "written").read_text().split() == ["-cpu", "-memory", "-pids"]


def test_state_is_where_both_units_may_write_and_outside_a_private_tmp() -> None:
    settings = config.load(DEPLOY / "tango.toml", environ={})
    for name in ("tango-http@.service", "tango-dispatcher.service"):
        place = Path("/var/lib") / directives(name)["StateDirectory"]
        assert settings.store.data_dir == place and settings.state_dir.is_relative_to(place)


# -- what a supervisor hears -------------------------------------------------------------------------


async def test_ready_is_told_when_the_api_answers(service: Service, listener: Listener, tmp_path: Path) -> None:
    process = start(service, tmp_path, "tango-http")
    message = await listener.hear("READY=1")
    found = re.search(r"STATUS=http on (http://\S+)", "\n".join(message))
    assert found is not None
    service.url = found[1]
    assert (await service.call("GET", "/readyz"))[0] == 200
    process.popen.send_signal(signal.SIGTERM)
    assert any(word.startswith("STATUS=stopping") for word in await listener.hear("STOPPING=1"))
    assert await process.ended() == 0


async def test_ready_is_told_when_the_dispatcher_takes_jobs(
    service: Service, sandbox: None, listener: Listener, tmp_path: Path
) -> None:
    process = start(service, tmp_path, "tango-dispatcher")
    assert "STATUS=vmms localSandbox, 3 slots" in await listener.hear("READY=1")
    process.popen.send_signal(signal.SIGTERM)
    await listener.hear("STOPPING=1")
    assert await process.ended() == 0


@pytest.mark.parametrize("name", ["tango-http", "tango-dispatcher"])
async def test_a_process_that_is_stuck_is_not_heard_of(
    service: Service, sandbox: None, listener: Listener, tmp_path: Path, name: str
) -> None:
    process = start(service, tmp_path, name, WATCHDOG_USEC="400000")
    await listener.hear("READY=1")
    for _ in range(3):
        await listener.hear("WATCHDOG=1")
    process.popen.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.popen.pid, os.WSTOPPED)
    listener.drain()
    await asyncio.sleep(1.0)
    assert not listener.drain()
    process.popen.send_signal(signal.SIGCONT)
    await listener.hear("WATCHDOG=1")


async def test_a_process_that_is_aborted_says_where_it_was(
    service: Service, listener: Listener, tmp_path: Path
) -> None:
    process = start(service, tmp_path, "tango-http")
    await listener.hear("READY=1")
    process.popen.send_signal(signal.SIGABRT)
    assert await process.ended() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in process.said() and "asyncio/runners.py" in process.said()


async def test_a_loop_that_is_stuck_is_not_heard_of_though_its_process_runs(listener: Listener, tmp_path: Path) -> None:
    watchdog = asyncio.create_task(told(tmp_path, WATCHDOG_USEC="100000").keep_watchdog())
    await listener.hear("WATCHDOG=1")
    listener.drain()
    time.sleep(0.3)
    assert not listener.drain()
    await listener.hear("WATCHDOG=1")
    watchdog.cancel()


def told(tmp_path: Path, **environment: str) -> Supervisor:
    return Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify"), **environment})


async def test_an_abstract_socket_is_spoken_to(tmp_path: Path) -> None:
    name = f"tango-test-{os.getpid()}"
    listener = Listener(f"\0{name}")
    Supervisor({"NOTIFY_SOCKET": f"@{name}"}).tell("READY=1", "STATUS=here")
    assert await listener.next() == ["READY=1", "STATUS=here"]
    listener.close()


async def test_the_watchdog_of_another_process_is_left_alone(listener: Listener, tmp_path: Path) -> None:
    await asyncio.wait_for(told(tmp_path, WATCHDOG_USEC="1000", WATCHDOG_PID="1").keep_watchdog(), 1.0)
    await asyncio.wait_for(told(tmp_path).keep_watchdog(), 1.0)
    assert not listener.drain()


async def test_without_a_supervisor_nothing_happens_and_a_lost_one_stops_nobody(tmp_path: Path) -> None:
    await asyncio.wait_for(Supervisor({"WATCHDOG_USEC": "1000"}).keep_watchdog(), 1.0)
    Supervisor({}).tell("READY=1")
    told(tmp_path).tell("READY=1")


def test_no_program_of_ours_inherits_the_socket(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Supervisor(environment)
    assert environment == {"PATH": "/bin"}


# -- what the dispatcher's unit forbids ----------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace and becomes another user")
async def test_jobs_run_without_privileges_on_a_read_only_system(
    service: Service, sandbox: None, tmp_path: Path
) -> None:
    """ProtectSystem=strict, User= and NoNewPrivileges=yes, as far as they can be played here."""
    data = Path(service.environment["TANGO_DATA_DIR"])
    data.mkdir()
    confine = (
        'mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift && '
        'exec unshare --user --map-user=1234 --map-group=1234 setpriv --no-new-privs "$@"'
    )
    script = tmp_path / "confined"
    script.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{confine}' confined {data} \"$@\"\n")
    script.chmod(0o700)
    if subprocess.run([str(script), "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces cannot be made here")
    for name in ("tango-http", "tango-dispatcher"):
        wrapped = tmp_path / name
        wrapped.write_text(f'#!/bin/sh\nexec {script} {SCRIPTS / name} "$@"\n')
        wrapped.chmod(0o700)
        await service.run(str(wrapped))
    await service.upload("lab", {"Makefile": b"autograde:\n\t@echo ran; touch /usr/x || echo kept\n"})
    await service.add("lab", ["Makefile"], "out.txt")
    feedback = await service.poll("lab", "out.txt")
    assert "\nran\n" in feedback and feedback.endswith("kept\n")
    page = (await service.call("GET", "/metrics"))[2].decode()
    assert re.search(r"^tango_dispatcher_up\{.*\} 1\.0$", page, re.MULTILINE)
    assert re.search(r"^tango_dispatcher_rss_bytes\{.*\} [1-9]", page, re.MULTILINE)
