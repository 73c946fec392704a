"""Podman's Docker-compatible socket, in namespaces of its own as a private engine of Docker has."""

from __future__ import annotations

import shutil

from support.engine import PrivateEngine

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

    def _command(self) -> list[str]:
        d = self.directory
        (d / "containers.conf").write_text(CONF)
        places = ["--root", f"{d}/data", "--runroot", f"{d}/run", "--tmpdir", f"{d}/tmp"]
        # There is no systemd here.
        how = ["--runtime", self._runtime, "--cgroup-manager", "cgroupfs"]
        enter = super()._command()[: super()._command().index("dockerd")]
        conf = ["env", f"CONTAINERS_CONF={d}/containers.conf"]
        return [*enter, *conf, "podman", *places, *how, "system", "service", "--time", "0", self.host]
