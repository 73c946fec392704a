"""A registry for images, on an address that engines behind links can reach."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import time
from pathlib import Path

from support.engine import WITHIN_S

PROGRAM = "docker-registry"
PORT = 5000

CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {directory}/blobs}}}}
http: {{addr: "{address}:{port}"}}
auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}
"""

USER, PASSWORD = "grader", "secret"
HASHED = "grader:$2a$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


class Registry:
    """Takes USER with PASSWORD only."""

    def __init__(self, directory: Path, address: str) -> None:
        self.address = f"{address}:{PORT}"
        self._directory = directory
        (directory / "htpasswd").write_text(HASHED)
        (directory / "config.yml").write_text(CONFIG.format(directory=directory, address=address, port=PORT))
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str:
        return "" if shutil.which(PROGRAM) else f"{PROGRAM} is not installed: apt-get install docker-registry"

    def start(self) -> None:
        command = [PROGRAM, "serve", str(self._directory / "config.yml")]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + WITHIN_S
        while time.monotonic() < end:
            connection = http.client.HTTPConnection(self.address, timeout=5)
            try:
                connection.request("GET", "/v2/")
                if connection.getresponse().status == 401:
                    return
            except OSError:
                time.sleep(0.05)
            finally:
                connection.close()
        raise RuntimeError((self._directory / "log").read_text()[-500:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(WITHIN_S)
