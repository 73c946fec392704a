"""Several engines behind links that can be cut, each with the grading image. A plugin of the root conftest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Lacking
from support.fixtures_docker import absent
from support.netns import RemoteEngine, two_engines
from tango_async.config import Docker, DockerHost, Settings, Store


@pytest.fixture(scope="session")
def remote_engines() -> Iterator[list[RemoteEngine]]:
    """Two, named n0 and n1 in `dist_settings`, with TLS and the grading image."""
    try:
        with tempfile.TemporaryDirectory(prefix="tc-") as directory, two_engines(Path(directory)) as engines:
            yield engines
    except Lacking as e:
        absent(str(e))


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
