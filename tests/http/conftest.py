from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.api import Api, serving
from tango_async.config import Settings


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with serving(settings) as api:
        yield api


@pytest.fixture
def labs(settings: Settings) -> Path:
    return settings.store.labs
