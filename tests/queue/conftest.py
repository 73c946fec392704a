"""A queue on the shared server, under a prefix of its own that must be empty of strays afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tango_async.config import Settings
from tango_async.queue.redis import Queue


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    queue = Queue(settings, timeout_s=30.0)
    await queue.open()
    yield queue
    await queue.close()
