"""Several engines behind links that can be cut, each with the grading image. A plugin of the root conftest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.fixtures_docker import BUILDER, absent
from support.netns import Certificates, RemoteEngine
from tango_async.config import Docker, DockerHost, Settings, Store


@pytest.fixture(scope="session")
def remote_engines() -> Iterator[list[RemoteEngine]]:
    """Two, named n0 and n1 in `dist_settings`, with TLS and the grading image."""
    if missing := RemoteEngine.missing():
        absent(missing)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tc-")))
        certificates = Certificates(directory / "tls")
        engines = []
        for _ in range(2):
            engine = RemoteEngine(certificates)
            stack.callback(engine.stop)
            engine.start()
            environment = os.environ | {"DOCKER_HOST": engine.host}
            subprocess.run([sys.executable, str(BUILDER)], env=environment, check=True, capture_output=True)
            engines.append(engine)
        yield engines


@pytest.fixture
def engines(remote_engines: list[RemoteEngine]) -> Iterator[list[RemoteEngine]]:
    """All there and reachable before and after the test."""
    yield remote_engines
    for engine in remote_engines:
        engine.heal()
        if not engine.answers():
            engine.start()


def host_of(engine: RemoteEngine, name: str, slots: int = 2) -> DockerHost:
    tls = engine.certificates
    assert tls is not None
    return DockerHost(name=name, url=engine.url, slots=slots, ca=tls.ca, cert=tls.cert, key=tls.key)


def settings_of(engines: list[RemoteEngine], data_dir: Path, **changes: object) -> Settings:
    hosts = tuple(host_of(engine, f"n{i}") for i, engine in enumerate(engines))
    return Settings(store=Store(data_dir=data_dir), docker=Docker(hosts=hosts, **changes))  # type: ignore[arg-type]
