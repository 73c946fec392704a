"""Fixtures of ec2SSH: two moto servers for all tests, a cloud with two accounts for each."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from support.vm import SshVm

if TYPE_CHECKING:
    from support.ec2 import Cloud


@pytest.fixture(scope="session")
def virtual_machines() -> None:
    """Skips where none can be made."""
    if why := SshVm.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="session")
def motos(virtual_machines: None) -> Iterator[dict[str, str]]:
    from support.ec2 import KEY, OTHER_KEY, moto

    with moto() as own, moto() as other:
        yield {KEY: own, OTHER_KEY: other}


@pytest.fixture
async def cloud(motos: dict[str, str]) -> AsyncIterator[Cloud]:
    from support.ec2 import cloud_on

    async with cloud_on(motos) as cloud:
        yield cloud
