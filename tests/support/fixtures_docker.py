"""The Docker engine of the tests, with the grading image in it. A plugin of the root conftest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from support.engine import Engine, PrivateEngine, present_engine
from support.ward import Ward

IMAGE = "autograding_image"

BUILDER = Path(__file__).parents[2] / "deploy/images/grading_image.py"


@pytest.fixture(scope="session")
def docker_engine(ward: Ward) -> Iterator[Engine]:
    """The engine of this machine if one answers, else one of our own; holds the image `autograding_image`."""
    engine = present_engine()
    if engine is None:
        for ward.engine in _private():
            yield ward.engine
    else:
        _with_image(engine)
        ward.engine = engine
        yield engine
    ward.engine = None


@pytest.fixture(scope="session")
def private_engine(docker_engine: Engine) -> Iterator[PrivateEngine]:
    """An engine that a test may stop and kill, if it starts it again."""
    if isinstance(docker_engine, PrivateEngine):
        yield docker_engine
    else:
        yield from _private()


def _private() -> Iterator[PrivateEngine]:
    if missing := PrivateEngine.missing():
        absent(missing)
    engine = PrivateEngine()
    try:
        try:
            engine.start()
        except RuntimeError as e:
            absent(str(e))
        _with_image(engine)
        yield engine
    finally:
        engine.stop()


def _with_image(engine: Engine) -> None:
    if engine.call("GET", f"/images/{IMAGE}/json")[0] != 200:
        environment = os.environ | {"DOCKER_HOST": engine.host}
        built = subprocess.run([sys.executable, str(BUILDER)], env=environment, capture_output=True, text=True)
        if built.returncode:
            absent(f"the grading image cannot be built: {built.stderr[-500:]}")


def absent(why: str) -> NoReturn:
    """Skips at home; fails where everything must be there."""
    said = f"no Docker engine answers, and there can be none of our own: {why}"
    if os.environ.get("CI") == "true":
        pytest.fail(said)
    pytest.skip(said)
