"""Fixtures of ec2SSH: two moto servers for all tests, a cloud with two accounts for each."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.ec2 import Cloud

SSHD = Path("/usr/sbin/sshd")


def missing() -> str:
    """Why there can be no cloud here; "" if there can."""
    if os.geteuid() != 0:
        return "machines of tests need root"
    if not SSHD.exists():
        return "sshd is not installed: apt-get install openssh-server"
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    wanted = ("moto", "aiobotocore", "asyncssh")
    return next((f"{name} is not installed" for name in wanted if importlib.util.find_spec(name) is None), "")


@pytest.fixture(scope="session")
def virtual_machines() -> None:
    """Skips where none can be made."""
    if why := missing():
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
