"""A Docker engine of the tests' own, or the one that is already there, with the grading image in it.

The private engine lives in network, mount and pid namespaces of its own: its bridge and its rules
never meet another engine's (a second dockerd in one network namespace can delete the first one's
docker0), its mounts and processes end with the namespaces, also when the test run is killed. Its
files are on a real disk, since overlay2 does not work on top of another overlay.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

DEFAULT_SOCKET = "/var/run/docker.sock"

IMAGE = "autograding_image"
BUILDER = Path(__file__).parents[2] / "deploy/images/grading_image.py"

WITHIN_S = 60.0
"""Patience with what an engine does in a second, on a machine that is busy."""

_DISK = Path("/var/tmp")
_PREFIX = "tango-engine-"
"""Followed by the pid of the test run that an engine belongs to."""

_HOLDER = "mount -t tmpfs tmpfs /run && echo ready && while :; do sleep 3600 & wait $!; done"
"""Init of the namespaces. A /run of its own, since containerd keeps sockets at a fixed place there."""


class Lacking(Exception):
    """What this machine lacks, and what to do about it."""


class Engine:
    """An engine that answers on a unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.host = f"unix://{path}"

    def call(self, method: str, path: str, body: bytes | None = None, /, **query: object) -> tuple[int, bytes]:
        """One API call, without the client under test."""
        connection = _UnixConnection(self.path)
        parameters = "&".join(f"{k}={quote(v if isinstance(v, str) else json.dumps(v))}" for k, v in query.items())
        kind = "application/json" if body is None or body[:1] == b"{" else "application/x-tar"
        try:
            connection.request(method, f"{path}?{parameters}", body, {"Content-Type": kind})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str, /, **query: object) -> Any:
        status, body = self.call("GET", path, **query)
        if status >= 400:
            raise RuntimeError(f"{path}: {status} {body[:200]!r}")
        return json.loads(body)

    def answers(self) -> bool:
        try:
            return self.call("GET", "/_ping") == (200, b"OK")
        except (OSError, http.client.HTTPException):
            return False

    def containers(self, *labels: str) -> list[str]:
        """Ids of all containers, or of those with all these labels."""
        return [c["Id"] for c in self.get("/containers/json", all=1, filters={"label": list(labels)})]

    def remove(self, container: str) -> None:
        self.call("DELETE", f"/containers/{container}", force="1", v="1")


class PrivateEngine(Engine):
    """dockerd as a child of this process, restarted and killed at will."""

    def __init__(self) -> None:
        _sweep_dead()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_DISK))
        super().__init__(str(self.directory / "docker.sock"))
        self._cgroup = self.directory.name
        (self.directory / "daemon.json").write_text("{}")
        self._holder: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str:
        """What this machine lacks for a private engine; empty if nothing."""
        if os.geteuid() != 0:
            return "not root"
        absent = [p for p in ("dockerd", "iptables", "unshare", "nsenter", "setpriv") if shutil.which(p) is None]
        return f"not installed: {', '.join(absent)}" if absent else ""

    def start(self) -> None:
        """Raises RuntimeError with the end of dockerd's log if it does not come up."""
        if self._holder is None:
            self._hold()
        for stale in ("pid", "exec/containerd/containerd.pid"):
            (self.directory / stale).unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            # What interrupts us all is not for it: containers are removed first.
            self._daemon = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd="/", start_new_session=True)
        end = time.monotonic() + WITHIN_S
        while time.monotonic() < end and self._daemon.poll() is None:
            if self.answers():
                return
            time.sleep(0.05)
        raise RuntimeError((self.directory / "log").read_text(errors="replace")[-800:])

    def _hold(self) -> None:
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["setpriv", "--pdeathsig", "KILL", *namespaces, "sh", "-c", _HOLDER]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/", start_new_session=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError("namespaces cannot be made here")

    def _command(self) -> list[str]:
        assert self._holder is not None
        d = self.directory
        enter = ["nsenter", "--target", str(_child(self._holder.pid)), "--net", "--mount", "--pid"]
        places = ["--data-root", f"{d}/data", "--exec-root", f"{d}/exec", "--pidfile", f"{d}/pid"]
        options = ["--config-file", f"{d}/daemon.json", "--cgroup-parent", f"/{self._cgroup}", "--live-restore"]
        return [*enter, "dockerd", "-H", self.host, *places, *options]

    @property
    def pid(self) -> int:
        """dockerd's own pid, as seen from here."""
        assert self._daemon is not None
        return _child(self._daemon.pid)

    def send(self, sig: signal.Signals) -> None:
        """Stopped, nsenter is so before dockerd: else it stops itself a moment later, and perhaps for good."""
        assert self._daemon is not None
        if sig == signal.SIGSTOP:
            self._daemon.send_signal(sig)
            os.waitid(os.P_PID, self._daemon.pid, os.WSTOPPED)
        os.kill(self.pid, sig)
        if sig != signal.SIGSTOP:
            self._daemon.send_signal(signal.SIGCONT)  # so that it sees an end, too

    def kill(self) -> None:
        """kill -9 of dockerd, and reap; containers run on."""
        assert self._daemon is not None
        self.send(signal.SIGKILL)
        self._daemon.wait(WITHIN_S)
        self._daemon = None

    def stop(self) -> None:
        """Ends everything and leaves no file, mount, process or cgroup."""
        if self._daemon is not None and self._daemon.poll() is None:
            self.send(signal.SIGCONT)
            if self.answers():
                for container in self.containers():
                    self.remove(container)
            self.send(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(WITHIN_S)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(WITHIN_S)
            assert self._holder.stdout is not None
            self._holder.stdout.close()
        if self._daemon is not None:
            self._daemon.wait(WITHIN_S)
        _sweep(self.directory)


def _sweep(directory: Path) -> None:
    """Removes an engine's files and cgroups, once the kernel has let go of its mounts. Raises RuntimeError."""
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        shutil.rmtree(directory, ignore_errors=True)
        # Not a glob, which fails when another engine's cgroups go meanwhile.
        tops = [Path(path, directory.name) for path, names, _ in os.walk("/sys/fs/cgroup") if directory.name in names]
        for top in tops:
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()
        if not directory.exists():
            return
        time.sleep(0.05)
    raise RuntimeError(f"{directory} cannot be removed")


def _sweep_dead() -> None:
    """What test runs left that were killed."""
    for directory in _DISK.glob(f"{_PREFIX}*"):
        owner = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(RuntimeError):  # which is no reason against an engine of ours
                _sweep(directory)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


def _child(pid: int) -> int:
    """The only child of a process that forks and waits."""
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError(f"process {pid} has no child")


def present_engine() -> Engine | None:
    """The engine of this machine, if it answers."""
    host = os.environ.get("DOCKER_HOST", "") or f"unix://{DEFAULT_SOCKET}"
    if not host.startswith("unix://"):
        return None
    engine = Engine(host.removeprefix("unix://"))
    return engine if engine.answers() else None


@contextlib.contextmanager
def any_engine() -> Iterator[Engine]:
    """The engine of this machine if one answers, else a private one; with the grading image. Raises Lacking."""
    engine = present_engine()
    if engine is None:
        with private_engine() as engine:
            yield engine
    else:
        load_image(engine)
        yield engine


@contextlib.contextmanager
def private_engine() -> Iterator[PrivateEngine]:
    """With the grading image. Raises Lacking."""
    why = "no Docker engine answers, and there can be none of our own: "
    if missing := PrivateEngine.missing():
        raise Lacking(why + missing)
    engine = PrivateEngine()
    try:
        try:
            engine.start()
        except RuntimeError as e:
            raise Lacking(why + str(e)) from e
        load_image(engine)
        yield engine
    finally:
        engine.stop()


def load_image(engine: Engine) -> None:
    """The grading image, if the engine does not have it. Raises Lacking."""
    if engine.call("GET", f"/images/{IMAGE}/json")[0] != 200:
        _build(DOCKER_HOST=engine.host)


def build_image() -> None:
    """What `load_image` loads, made while there are Debian's mirrors. Raises Lacking."""
    _build("--archive")


def _build(*options: str, **environment: str) -> None:
    command = [sys.executable, str(BUILDER), *options]
    built = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if built.returncode:
        raise Lacking(f"the grading image cannot be built: {built.stderr[-500:].strip()}")
