"""The Docker engine of the tests, with the grading image in it. A plugin of the root conftest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from support.engine import Engine, Lacking, PrivateEngine, any_engine
from support.engine import private_engine as an_engine_of_our_own
from support.ward import Ward


@pytest.fixture(scope="session")
def docker_engine(ward: Ward) -> Iterator[Engine]:
    """The engine of this machine if one answers, else one of our own; holds the image `autograding_image`."""
    try:
        with any_engine() as ward.engine:
            yield ward.engine
    except Lacking as e:
        absent(str(e))
    ward.engine = None


@pytest.fixture(scope="session")
def private_engine(docker_engine: Engine) -> Iterator[PrivateEngine]:
    """An engine that a test may stop and kill, if it starts it again."""
    if isinstance(docker_engine, PrivateEngine):
        yield docker_engine
        return
    try:
        with an_engine_of_our_own() as engine:
            yield engine
    except Lacking as e:
        absent(str(e))


def absent(why: str) -> NoReturn:
    """Skips at home; fails where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)
