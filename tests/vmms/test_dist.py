"""distDocker on two real engines behind links that can be cut: the contract, and what only several hosts can do."""

from __future__ import annotations

import pytest

from contracts.machines import Backend
from contracts.vmms import VmmsContract
from tango_async.config import Settings
from tango_async.errors import ConfigError
from tango_async.vmms.base import load
from vmms.conftest import Dist


@pytest.fixture
def backend(dist: Dist) -> Backend:
    return dist


class TestDistDocker(VmmsContract):
    """The contract."""


async def test_it_needs_hosts() -> None:
    with pytest.raises(ConfigError, match=r"docker\.hosts: empty"):
        load("distDocker", Settings(), "here")
