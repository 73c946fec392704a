"""A Tashi cluster of the test's own; its VMs end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.tashi import ClusterManager


@pytest.fixture
async def manager(virtual_machines: None, tmp_path: Path) -> AsyncIterator[ClusterManager]:
    async with ClusterManager(tmp_path) as manager:
        yield manager
