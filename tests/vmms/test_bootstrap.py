"""The script in the shells that images have, run here without any sandbox, and the archive that it reads."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contracts.machines import Files, inputs, limit, make
from tango_async.errors import StoreError
from tango_async.machine import InputFile
from tango_async.vmms.bootstrap import (
    FAILED_FIRST,
    FAILED_LAST,
    REASONS,
    SCRIPT,
    after_mark,
    archive,
    command,
    end_mark,
    end_of,
    ended,
    mark,
    why_not_started,
)

NONCE = "c0ffee"
SHELLS = {"dash": ["dash"], "bash": ["bash"], "busybox": ["busybox", "sh"]}


@dataclass(frozen=True)
class Shell:
    name: str
    directory: Path

    def run(
        self, sent: bytes, directory: Path | None = None, path: str | None = None, output: str = ""
    ) -> tuple[int, bytes]:
        program, *applet = SHELLS[self.name]
        ran = subprocess.run(
            # As an image names it: bash reads its first argument's name and becomes a POSIX shell.
            ["sh", *applet[1:], "-c", SCRIPT, "tango", NONCE, str(directory or self.directory), output],
            executable=shutil.which(program), input=sent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin" if path is None else path}, timeout=120, check=False,
        )  # fmt: skip
        return ran.returncode, ran.stdout


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    if shutil.which(SHELLS[request.param][0]) is None:
        pytest.skip(f"{request.param} is not installed")
    return Shell(request.param, tmp_path / "work")


def last_line(said: bytes) -> bytes:
    """The end mark, with whatever it says."""
    line = said.splitlines(keepends=True)[-1]
    assert line.startswith(end_mark(NONCE))
    return line


async def packed(files: Files, *, timeout_s: int = 20, processes: int = 0, nonce: str = NONCE) -> bytes:
    chunks = archive(inputs(files), nonce, limit(timeout_s=timeout_s), processes=processes)
    return b"".join([chunk async for chunk in chunks])


async def test_the_program_follows_the_mark(shell: Shell) -> None:
    code, said = shell.run(await packed(make("echo out; echo err >&2; cat")))
    assert (code, said) == (0, mark(NONCE) + b"out\nerr\n" + last_line(said))
    assert end_of(said, NONCE) in {(0, None), (0, False)}
    assert [p.name for p in shell.directory.iterdir()] == ["Makefile"]


async def test_limits_are_set_before_the_program(shell: Shell) -> None:
    report = "grep -E 'core|file size|processes' /proc/self/limits | tr -s ' ' | cut -d' ' -f3-6"
    _, said = shell.run(await packed(make(report), processes=5000))
    assert b"size 67108864 67108864" in said and b"5000 5000" in said and b"size 0 0" in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [("exit 3", 2), ("kill -9 $PPID", 137), ("exit 92", 2)],
)
async def test_the_end_is_told_as_it_was(shell: Shell, line: str, expected: int) -> None:
    code, said = shell.run(await packed(make(line)))
    assert code == expected
    assert said.startswith(mark(NONCE)) and b"Killed" not in said and b"tango:" not in said


async def test_the_timer_is_told_from_a_kill(shell: Shell) -> None:
    code, said = shell.run(await packed(make("echo up; trap '' TERM; sleep 30; echo late"), timeout_s=1))
    assert (code, said) == (124, mark(NONCE) + b"up\n" + last_line(said))
    assert ended(code).timed_out and not ended(137).timed_out


def path_with_make(directory: Path, script: str) -> str:
    """A PATH whose `make` is of the image's own, and may end as it likes."""
    for program in ("sh", "tar", "timeout", "mkdir", "gzip"):
        (directory / program).symlink_to(str(shutil.which(program)))
    (directory / "make").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "make").chmod(0o755)
    return str(directory)


async def test_a_make_that_was_asked_to_end_is_told_from_one_that_failed(shell: Shell, tmp_path: Path) -> None:
    """GNU make, asked by its own recipe, dies of the signal or fails, whichever it sees first."""
    code, said = shell.run(await packed({}), path=path_with_make(tmp_path, "kill -TERM $$"))
    assert code == 143
    assert said.startswith(mark(NONCE)) and b"Terminated" not in said and b"tango:" not in said


@pytest.mark.parametrize("status", [90, 92, 99, 124])
async def test_no_status_of_makes_looks_like_ours(shell: Shell, status: int, tmp_path: Path) -> None:
    code, said = shell.run(await packed({}), path=path_with_make(tmp_path, f"exit {status}"))
    assert said == mark(NONCE) + last_line(said)
    assert not FAILED_FIRST <= code <= FAILED_LAST and not ended(code).timed_out
    assert (end_of(said, NONCE) or ())[0] == code


async def test_what_is_not_whole_does_not_start(shell: Shell) -> None:
    whole = await packed(make("echo started"))
    order = whole[: whole.index(b"\n") + 1]
    for sent, reason in (
        (b"", (91, 92)),
        (b"no order" * 100, (92,)),
        (order + b"not a tar" * 100, (91,)),
        (whole[: len(order) + 700], (91,)),
        (whole[: len(order) + 1024], (92,)),
        (whole[: -1024 - 512], (92,)),
        (await packed(make("echo started"), nonce="another"), (92,)),
    ):
        code, said = shell.run(sent)
        assert code in reason and b"tango-started" not in said
        shutil.rmtree(shell.directory)


async def test_what_cannot_start_says_why(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said = shell.run(await packed({}), directory=tmp_path / "file/below")
    assert code == 90 and "work directory" in why_not_started(code, said)
    (tmp_path / "bin").mkdir()
    for program in ("sh", "tar", "mkdir", "timeout"):
        (tmp_path / "bin" / program).symlink_to(str(shutil.which(program)))
    code, said = shell.run(await packed({}), path=str(tmp_path / "bin"))
    assert code == 93 and "make or timeout" in why_not_started(code, said)


def test_reasons_fit_in_a_line_and_name_unknown_statuses() -> None:
    assert all(FAILED_FIRST <= code <= FAILED_LAST for code in REASONS)
    assert why_not_started(1, b"bwrap: \xff no\n" + b"x" * 999).startswith("the machine ended with status 1 before")
    assert len(why_not_started(91, b"x" * 9999)) < 400


def test_the_nonce_is_an_argument_and_never_code() -> None:
    assert command(NONCE)[:2] == ["/bin/sh", "-c"] and NONCE not in command(NONCE)[2]


async def test_the_archive_is_a_tar_after_the_order() -> None:
    names = ["a", "ü" * 120, "n" * 255, " x ", "-rf"]
    order, _, archived = (await packed(dict.fromkeys(names, "text"), processes=7)).partition(b"\n")
    assert order == f"{NONCE} 20 131072 7".encode()
    with tarfile.open(fileobj=io.BytesIO(archived)) as tar:
        assert tar.getnames() == [*names, "."]


@pytest.mark.parametrize("size", [2, 4])
async def test_a_file_of_another_size_is_not_followed_by_the_end(size: int) -> None:
    async def three() -> AsyncIterator[bytes]:
        yield b"abc"

    sent = b""
    with pytest.raises(StoreError, match="3 of"):
        async for chunk in archive([InputFile("f", size, three)], NONCE, limit(), processes=0):
            sent += chunk
    assert sent.endswith(b"abc")


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_the_mark_is_taken_off_wherever_chunks_end(step: int) -> None:
    async def cut(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), step):
            yield data[start : start + step]

    async def left(data: bytes) -> bytes:
        return b"".join([chunk async for chunk in after_mark(cut(data), NONCE)])

    assert await left(mark(NONCE) + b"hello") == b"hello"
    ends = end_mark(NONCE) + b"137 12\n"
    assert await left(mark(NONCE) + b"no newline" + ends) == b"no newline"
    assert await left(mark(NONCE) + b"a daemon " + ends + b"talks on") == b"a daemon talks on"
    assert await left(mark(NONCE) + ends[:-1]) == ends[:-1]
    assert await left(mark(NONCE) + end_mark(NONCE) + b"so it says\n") == end_mark(NONCE) + b"so it says\n"
    assert await left(mark(NONCE) + b"tango-ended tango-") == b"tango-ended tango-"
    assert await left(mark(NONCE) + mark(NONCE)) == mark(NONCE)
    assert await left(mark("other0") + b"hello") == await left(mark(NONCE)[:-1]) == await left(b"") == b""


def test_the_last_end_mark_tells_the_end() -> None:
    first, last = end_mark(NONCE) + b"0 0\n", end_mark(NONCE) + b"2 ?\n"
    assert end_of(b"said" + first, NONCE) == (0, False)
    assert end_of(first + b"said" + last + b"and on", NONCE) == (2, None)
    assert end_of(end_mark(NONCE) + b"137 3\n", NONCE) == (137, True)
    assert end_of(first[:-1], NONCE) is end_of(b"", NONCE) is end_of(first, "other") is None


async def test_the_output_goes_to_a_pipe_where_one_is_named(shell: Shell, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        assert shell.run(await packed(make("echo out; echo err >/dev/stderr")), output=str(pipe)) == (0, b"")
        said = reader.communicate(timeout=120)[0]
    assert said == mark(NONCE) + b"out\nerr\n" + last_line(said)
    assert shell.run(b"", output=str(tmp_path / "none"))[0] == 95
