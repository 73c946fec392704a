"""`make demo`'s script, as it is run after a clone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"


def demo(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DEMO],
        env={**os.environ, "TMPDIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_submissions_are_graded_and_nothing_is_left(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("bubblewrap is not installed")
        pytest.skip("bubblewrap is not installed")
    done = demo(tmp_path, TANGO_VMMS="localSandbox")
    assert done.returncode == 0, done.stdout + done.stderr
    right, wrong = (100, 55) if shutil.which("cc", path="/usr/local/bin:/usr/bin:/bin") else (100, 38)
    assert done.stdout.splitlines()[-1] == f"demo: graded 2 submissions on localSandbox: {right}, {wrong}"
    assert done.stdout.count("Success: Autodriver returned normally") >= 2
    assert "passed" in done.stderr and "/info/" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_cannot_start_is_a_failure_that_says_what_to_do(tmp_path: Path) -> None:
    done = demo(tmp_path, TANGO_VMMS="noSuchVmms")
    assert done.returncode == 1
    assert re.search(r"known: .*localDocker, localSandbox", done.stdout)
    assert str(next(tmp_path.glob("tango-demo-*"))) in done.stdout
