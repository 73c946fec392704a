"""The whole service as processes of their own, with a real Redis and real machines."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from conftest import absent
from support.engine import Engine
from support.redis_server import RedisServer
from support.service import Service

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def environment(tmp_path: Path, redis_server: RedisServer) -> dict[str, str]:
    return {
        "TANGO_KEYS": "test",
        "TANGO_HOST": "127.0.0.1",
        "TANGO_PORT": "0",
        "TANGO_DATA_DIR": str(tmp_path / "data"),
        "TANGO_REDIS_URL": redis_server.url,
        "TANGO_QUEUE_PREFIX": f"t{uuid4().hex[:12]}:",
        "TANGO_SLOTS": "3",
        "TANGO_CALLBACKS_MIN_AGE_S": "0.5",
    }


@pytest.fixture
async def service(tmp_path: Path, environment: dict[str, str]) -> AsyncIterator[Service]:
    """No process runs yet; what a test starts ends with it."""
    service = Service(tmp_path, environment)
    yield service
    await service.end()


@pytest.fixture
def sandbox(environment: dict[str, str]) -> None:
    if shutil.which("bwrap") is None:
        absent("bubblewrap is not installed: apt-get install bubblewrap")
    environment["TANGO_VMMS"] = "localSandbox"


@pytest.fixture(params=["localSandbox", "localDocker"])
def vmms(request: pytest.FixtureRequest, environment: dict[str, str]) -> str:
    """Each story on each back-end that this machine has."""
    name: str = request.param
    if name == "localSandbox":
        request.getfixturevalue("sandbox")
    else:
        engine: Engine = request.getfixturevalue("docker_engine")
        environment["DOCKER_HOST"] = engine.host
    environment["TANGO_VMMS"] = name
    return name
