from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from support.api import Api, serving
from tango_async.config import Settings


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The usual ones, changed as a test's indirect parameter says: {table: {setting: value}}."""
    changes: dict[str, dict[str, object]] = getattr(request, "param", {})
    tables = {name: msgspec.structs.replace(getattr(settings, name), **values) for name, values in changes.items()}
    return msgspec.structs.replace(settings, **tables)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with serving(settings) as api:
        yield api


@pytest.fixture
def labs(settings: Settings) -> Path:
    return settings.store.labs
