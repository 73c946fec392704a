"""What a service says that lacks a package which only some settings need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tango_async import extras

LACKING = "import sys; sys.modules[{package!r}] = None; "
IMPORTS = "from tango_async import app, config; from tango_async.vmms import base; "


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("aiodocker", "base.load('localDocker', config.Settings(), 'here')"),
        ("aiodocker", "base.load('distDocker', config.Settings(), 'here')"),
        ("asyncssh", "base.load('tashiSSH', config.Settings(), 'here')"),
        ("asyncssh", "base.load('ec2SSH', config.Settings(), 'here')"),
        ("aiobotocore", "base.load('ec2SSH', config.Settings(), 'here')"),
        (
            "aiobotocore",
            "import asyncio; asyncio.run(app.connect_store(config.load(environ={'TANGO_STORE_URL': 's3://bucket'})))",
        ),
    ],
)
def test_the_error_tells_a_command_that_needs_no_index_to_know_this_project(package: str, call: str) -> None:
    program = [sys.executable, "-c", LACKING.format(package=package) + IMPORTS + call]
    said = subprocess.run(program, capture_output=True, text=True, check=False).stderr.strip().splitlines()[-1]
    assert "ConfigError" in said
    assert said.endswith(f"; type: {extras.install(package)}")


def test_the_command_asks_for_a_version_that_this_release_takes() -> None:
    assert extras.install("asyncssh").startswith(f"{sys.executable} -m pip install 'asyncssh<")
    assert extras.install("unheard-of") == f"{sys.executable} -m pip install unheard-of"
