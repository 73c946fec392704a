"""`make grade`'s script, as it is run after a clone. What it does on each back-end is in stories/test_grading.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import absent
from support.examples import ASSIGNMENTS, declared

ROOT = Path(__file__).parents[1]
GRADE = ROOT / "scripts" / "grade.py"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Short, since the path of a socket has a limit."""
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        yield Path(directory)


def grade(
    temporary: Path, *arguments: str, script: Path = GRADE, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "TMPDIR": str(temporary), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def named(tmp_path: Path, text: str) -> str:
    file = tmp_path / "tango.toml"
    file.write_text(text)
    return str(file)


@pytest.fixture
def sandbox() -> None:
    for program in ("bwrap", "cc"):
        if shutil.which(program) is None:
            absent(f"{program} is not installed")


def test_the_six_submissions_are_graded_and_nothing_is_left(sandbox: None, temporary: Path) -> None:
    done = grade(temporary, "localSandbox")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "localSandbox graded 6 submissions as their examples declare" in done.stdout.splitlines()[-1]
    for assignment in ASSIGNMENTS:
        for submission, points in declared(assignment).items():
            assert re.search(rf"{assignment} +{submission} .* {points[0]} and {points[1]}$", done.stdout, re.MULTILINE)
    assert list(temporary.iterdir()) == []


def test_scores_that_are_not_those_declared_are_a_failure(sandbox: None, temporary: Path, tmp_path: Path) -> None:
    for part in ("scripts", "tests/support", "deploy/images", "examples"):
        shutil.copytree(ROOT / part, tmp_path / part)
    declares = tmp_path / "examples" / "c-queue" / "README.md"
    declares.write_text(declares.read_text().replace("| `right` | 70 and", "| `right` | 71 and"))
    done = grade(temporary, "localSandbox", script=tmp_path / "scripts" / "grade.py")
    assert done.returncode == 1
    assert "correctness 70, robustness 30" in done.stdout and " 71 and 30: WRONG" in done.stdout, done.stdout
    assert "5 of 6 submissions got the scores" in done.stdout, done.stdout
    assert str(next(temporary.glob("tango-grade-*"))) in done.stdout


def test_a_feedback_without_scores_is_shown_and_is_a_failure(sandbox: None, temporary: Path, tmp_path: Path) -> None:
    config = named(tmp_path, "[limits]\nmax_file_bytes = 64\nfile_bytes = 64\n")
    done = grade(temporary, "localSandbox", TANGO_CONFIG=config)
    assert done.returncode == 1
    assert re.search(r"c-queue +right +none +70 and 30: WRONG", done.stdout), done.stdout
    assert "the feedback of c-queue, right:\nAutograder [" in done.stdout, done.stdout


def test_what_the_machine_lacks_is_said_with_what_to_do(temporary: Path) -> None:
    done = grade(temporary, "localSandbox", PATH="/nonexistent")
    assert done.returncode == 3
    assert "apt-get install bubblewrap" in done.stdout
    assert list(temporary.iterdir()) == []


def test_a_file_that_names_more_than_the_back_end_is_refused(temporary: Path, tmp_path: Path) -> None:
    done = grade(temporary, "ec2SSH", TANGO_CONFIG=named(tmp_path, '[queue]\nurl = "redis://production"\n'))
    assert done.returncode == 3
    assert "without [queue]" in done.stdout


def test_a_service_that_cannot_start_says_why(temporary: Path, tmp_path: Path) -> None:
    done = grade(temporary, "localSandbox", TANGO_CONFIG=named(tmp_path, "[sandbox]\nnonsense = 1\n"))
    assert done.returncode == 1
    assert "tango-http is not ready" in done.stdout and "nonsense" in done.stdout
