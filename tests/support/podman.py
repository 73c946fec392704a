"""Podman's Docker-compatible socket, in namespaces of its own as a private engine of Docker has."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from support.engine import PrivateEngine, _child

CONF = """\
[containers]
default_ulimits = ["nofile=1024:4096"]
[engine]
events_logger = "file"
"""


class PodmanEngine(PrivateEngine):
    """Serves until it is stopped; its containers have a monitor each, and do not die with it.

    `runtime` is a name or a path. crun knows no cgroups of version 1, so it is runc.
    """

    def __init__(self, runtime: str = "runc") -> None:
        super().__init__()
        self._runtime = runtime

    @staticmethod
    def missing() -> str:
        absent = [p for p in ("podman", "runc", "conmon") if shutil.which(p) is None]
        return f"not installed: {', '.join(absent)}" if absent else PrivateEngine.missing()

    def monitors(self) -> dict[int, str]:
        """Process → the name of its container."""
        ours, found = os.fsencode(self.directory), {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"conmon") and any(ours in word for word in words):
                    found[int(process.name)] = words[words.index(b"-n") + 1].decode()
        return found

    def left(self) -> list[str]:
        """Commands of what containers have running, but for such as Podman itself forgets.

        Killed while it makes a container, the service knows nothing of its monitor when it is back, nor of the
        `runc init` that waits there to become the program, and removes the container without either.
        """
        assert self._holder is not None
        tops = {pid: _words(pid) for pid in _children(_child(self._holder.pid))}
        return [
            " ".join(words)[:100] for pid, words in tops.items() if words[0] != "sleep" and not _forgotten(pid, words)
        ]

    def _command(self) -> list[str]:
        d = self.directory
        (d / "containers.conf").write_text(CONF)
        places = ["--root", f"{d}/data", "--runroot", f"{d}/run", "--tmpdir", f"{d}/tmp"]
        # There is no systemd here.
        how = ["--runtime", self._runtime, "--cgroup-manager", "cgroupfs"]
        enter = super()._command()[: super()._command().index("dockerd")]
        conf = ["env", f"CONTAINERS_CONF={d}/containers.conf"]
        return [*enter, *conf, "podman", *places, *how, "system", "service", "--time", "0", self.host]


def _forgotten(pid: int, words: list[str]) -> bool:
    monitored = [_words(child) for child in _children(pid)] if words[0].endswith("conmon") else [words]
    return bool(monitored) and all(one[1:] == ["init"] for one in monitored)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _words(pid: int) -> list[str]:
    """Of its command; one that is empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    return [""]
