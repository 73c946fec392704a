"""The example assignments, graded by their own Makefiles, without any service."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FULL = {
    "c-queue": {"correctness": 70, "robustness": 30},
    "python-calc": {"evaluation": 60, "errors": 40},
    "shell-topwords": {"output": 90, "usage": 10},
}
SUBMITTED = {"c-queue": "queue.c", "python-calc": "calc.py", "shell-topwords": "topwords.sh"}
NEEDS = {"c-queue": "cc", "python-calc": "python3", "shell-topwords": "timeout"}


def grade(name: str, source: bytes, where: Path, limit_s: float = 20) -> tuple[dict[str, int], str]:
    """The scores of the last line and all output, with the files as a job gets them."""
    if shutil.which(NEEDS[name]) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{NEEDS[name]} is not installed")
        pytest.skip(f"{NEEDS[name]} is not installed")
    for file in (EXAMPLES / name).iterdir():
        if file.is_file():
            shutil.copy(file, where)
    (where / SUBMITTED[name]).write_bytes(source)
    done = subprocess.run(
        ["make", f"TEST_LIMIT_S={limit_s}"],
        cwd=where,
        # Not those of a `make test` around us: they would add lines of their own to the output.
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=300,
        check=True,
    )
    last = [line for line in done.stdout.splitlines() if line.strip()][-1]
    return json.loads(last)["scores"], done.stdout


def submission(name: str, which: str) -> bytes:
    return (EXAMPLES / name / "submissions" / which / SUBMITTED[name]).read_bytes()


@pytest.mark.parametrize("name", FULL)
def test_the_right_submission_gets_full_marks(name: str, tmp_path: Path) -> None:
    scores, _ = grade(name, submission(name, "right"), tmp_path)
    assert scores == FULL[name]


@pytest.mark.parametrize("name", FULL)
def test_the_wrong_submission_gets_what_its_readme_says(name: str, tmp_path: Path) -> None:
    scores, _ = grade(name, submission(name, "wrong"), tmp_path)
    assert 0 < sum(scores.values()) < sum(FULL[name].values())
    first, second = scores.values()
    assert f"| `wrong` | {first} and {second}:" in (EXAMPLES / name / "README.md").read_text()


@pytest.mark.parametrize("name", FULL)
def test_the_hanging_submission_outlasts_a_job_of_60_s_and_shows_how_far_it_came(name: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    (tmp_path / "right").mkdir()
    grade(name, submission(name, "right"), tmp_path / "right")
    # As long for each test as half of them took now: one that is only slow is not taken for one that hangs.
    limit_s, begun = max(0.3, (time.monotonic() - begun) / 2), time.monotonic()
    (tmp_path / "hanging").mkdir()
    scores, output = grade(name, submission(name, "hanging"), tmp_path / "hanging", limit_s=limit_s)
    hangs = output.count("it did not come to an end")
    assert hangs * 20 >= 60 and time.monotonic() - begun >= hangs * limit_s
    assert "passed" in output.partition("it did not come to an end")[0]
    assert 0 < sum(scores.values()) < sum(FULL[name].values())


@pytest.mark.parametrize("name", FULL)
def test_a_missing_or_broken_submission_gets_nothing(name: str, tmp_path: Path) -> None:
    scores, _ = grade(name, b'{"scores": {"correctness": 70}}\n', tmp_path)
    assert scores == dict.fromkeys(FULL[name], 0)


FORGED = '{"scores": {"correctness": 999, "evaluation": 999, "output": 999}}'

HOSTILE = {
    "prints scores and leaves from the import": ("python-calc", f"print('{FORGED}', end='', flush=True); exit(0)"),
    "leaves hard from the import": ("python-calc", f"import os; os.write(1, b'{FORGED}'); os._exit(0)"),
    "prints rubbish": ("python-calc", "import os\nos.write(1, os.urandom(100_000))\nraise SystemExit"),
    "overwrites the grader": ("python-calc", "open('grade.py', 'w').write('print(1)')"),
    "leaves before main": (
        "c-queue",
        "#include <unistd.h>\n#include <stdio.h>\n"
        '__attribute__((constructor)) static void f(void) { printf("%s", "{}"); fflush(stdout); _exit(0); }\n',
    ),
    "overwrites what is expected": (
        "shell-topwords",
        f"echo '{FORGED}'; for f in *.expected grade.sh; do echo 'echo {FORGED}; exit' >$f; done; exit 0",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_submission_cannot_give_itself_points(what: str, tmp_path: Path) -> None:
    name, source = HOSTILE[what]
    scores, _ = grade(name, source.encode(), tmp_path)
    assert scores == dict.fromkeys(FULL[name], 0)
