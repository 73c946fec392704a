"""Real S3 servers of the tests' own, on loopback: SeaweedFS, which checks signatures, and moto's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
from aiobotocore.session import get_session

from support.places import own_port
from tango_async.config import S3, Settings, Store

ACCESS_KEY, SECRET_KEY = "tango-test", "tango-test-secret"
"""SeaweedFS lets in who signs with these; moto lets in anybody."""

SCRIPTS = Path(sys.executable).parent


def server_kinds() -> list[str]:
    """What this machine has."""
    programs = {"moto": "moto_server", "seaweedfs": "weed"}
    return [kind for kind, program in programs.items() if (SCRIPTS / program).exists()]


class S3Server:
    """One server process, killed and restarted at will. `endpoint` stays the same over restarts."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self._ports = [own_port() for _ in range(10)]
        self.port = self._ports[0]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, within_s: float = 90.0) -> None:
        with (self.directory / "s3.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.directory, stdout=log, stderr=log, env=self.environment()
            )
        until = time.monotonic() + within_s
        while time.monotonic() < until and self._process.poll() is None:
            if self.answers():
                return
            time.sleep(0.05)
        raise RuntimeError((self.directory / "s3.log").read_text(errors="replace")[-2000:])

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.directory)}

    def command(self) -> list[str]:
        """To be run in `directory`."""
        if self.kind == "moto":
            return [str(SCRIPTS / "moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]
        (self.directory / "data").mkdir(exist_ok=True)
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        identity = {"name": "tango", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        stranger = {
            "name": "stranger",
            "credentials": [{"accessKey": "stranger", "secretKey": SECRET_KEY}],
            "actions": ["Read:elsewhere"],
        }
        (self.directory / "identities.json").write_text(json.dumps({"identities": [identity, stranger]}))
        names = (
            "s3.port", "s3.port.grpc", "master.port", "master.port.grpc",
            "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
        )  # fmt: skip
        ports = [f"-{name}={port}" for name, port in zip(names, self._ports, strict=False)]
        return [
            str(SCRIPTS / "weed"), "server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports,
            "-s3", "-s3.config=identities.json", "-s3.port.lance=0", "-s3.port.iceberg=0",
            "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=100",
        ]  # fmt: skip

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=5).close()
        except urllib.error.HTTPError as e:
            return e.code == 403
        except OSError:
            return False
        return True

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9, and reap."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None
        for port in self._ports:  # SeaweedFS makes one there, whatever it is told
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


BUCKET = "tango-test"


def settings_for(server: S3Server, prefix: str, *, bucket: str = BUCKET, **changes: object) -> Settings:
    """Settings of a store below that prefix of the bucket."""
    s3 = {"endpoint": server.endpoint, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY, **changes}
    return Settings(store=Store(url=f"s3://{bucket}/{prefix}"), s3=msgspec.convert(s3, S3))


def raw_client(server: S3Server) -> Any:
    """A client of botocore's own, to look behind the store."""
    options = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "region_name": "us-east-1"}
    return get_session().create_client("s3", endpoint_url=server.endpoint, **options)


async def make_bucket(server: S3Server) -> None:
    async with raw_client(server) as client:
        await client.create_bucket(Bucket=BUCKET)
