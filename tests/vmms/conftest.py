"""The contract's asserts are explained; the engine comes from support/fixtures_docker.py."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("contracts.vmms", "contracts.machines")

from support.fixtures_docker import docker_engine, private_engine  # noqa: E402, F401
