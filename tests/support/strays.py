"""Fails a test that leaves something behind it. A plugin of all tests; what it looks at is in ward.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from support.ward import Ward

WARD = pytest.StashKey[Ward]()


@pytest.fixture(scope="session", autouse=True)
def ward(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Ward]:
    made = pytestconfig.stash[WARD] = Ward(tmp_path_factory.getbasetemp())
    before, tempfile.tempdir = tempfile.tempdir, str(made.temporary)
    yield made
    tempfile.tempdir = before
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left(ward: Ward, request: pytest.FixtureRequest) -> Iterator[None]:
    """The first fixture of each test, and so the last to end."""
    ward.begin()
    yield
    left = ward.after(request.node.funcargs.get("tmp_path"))
    if left:
        pytest.fail("this test left\n  " + "\n  ".join(left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """What a fixture of a wider scope makes stays."""
    ward = request.config.stash.get(WARD, None)
    if ward is None or fixturedef.scope == "function":
        return (yield)
    before = ward.there()
    try:
        return (yield)
    finally:
        ward.keep(before)
