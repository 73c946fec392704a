"""The fixture that fails tests which leave something: seen failing, in a run of its own for each kind of stray."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

HEAD = """
import os, subprocess, sys, tempfile
from pathlib import Path
import pytest
from conftest import redis_server
from support import ward as looked_at
looked_at.WITHIN_S = 1.0

class Engine:
    left = {"one": ["c1"], "two": ["c2"]}
    def answers(self): return True
    def containers(self, label): return self.left[label.partition("=")[2]]
    def remove(self, container): self.left["one"].remove(container)

class Hold:
    def __init__(self): self.process = subprocess.Popen(["sleep", "61"])

@pytest.fixture(scope="module")
def wide():
    process = subprocess.Popen(["sleep", "62"])
    directory = tempfile.mkdtemp()
    yield
    process.kill()
    process.wait()
"""

CLEAN = """
    subprocess.run(["true"], check=True)
    with tempfile.TemporaryDirectory(): pass
    (tmp_path / "file").touch()
    short = subprocess.Popen(["sleep", "0.3"])
    redis_server._ask("SET", "t0123456789ab:key", "1")
    request.getfixturevalue("wide")
    request.addfinalizer(short.wait)
"""

KINDS = {
    "process .*sleep 61": "    sys.child = Hold()",
    "process .*tango-orphan": """
    script = tmp_path / "tango-orphan"
    script.write_text("sleep 63; :")
    subprocess.run(["setsid", "--fork", "sh", str(script)], check=True)""",
    "directory .*/tx-": "    tempfile.mkdtemp(prefix='tx-')",
    "container c1": "    ward.installs.append((Engine(), 'one'))",
    "key tango:jobs": "    redis_server._ask('SET', 'tango:jobs', '1')",
}


def run(tmp_path: Path, *bodies: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "test_tiny.py"
    tests = [f"def test_{n}(ward, redis_server, tmp_path, request):\n{body}\n" for n, body in enumerate(bodies)]
    file.write_text(HEAD + "\n".join(tests))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "support.strays", "-p", "no:cacheprovider", str(file)]
    command += ["--rootdir", str(tmp_path), "-c", str(tmp_path / "pytest.ini"), "--basetemp", str(tmp_path / "base")]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_a_test_that_cleans_up_passes_though_wider_fixtures_hold_something(tmp_path: Path) -> None:
    done = run(tmp_path, CLEAN, CLEAN)
    assert "2 passed" in done.stdout and done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_test_leaves_is_named_and_removed_and_blamed_on_it_alone(tmp_path: Path, kind: str) -> None:
    done = run(tmp_path, KINDS[kind], CLEAN)
    assert "2 passed, 1 error" in done.stdout, done.stdout
    assert "ERROR at teardown of test_0" in done.stdout
    assert re.search(f"this test left\n  {kind}", done.stdout), done.stdout
