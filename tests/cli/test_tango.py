"""The `tango` command against a server that gives upstream's recorded answers, as a user runs it."""

import asyncio
import errno
import hashlib
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

KEY = "s3cret"
FEEDBACK = (
    b"Autograder [Sun Nov 22 00:14:48 2026]: Received job ok:1\n"
    b"Autograder [Sun Nov 22 00:14:50 2026]: Success: Autodriver returned normally\n"
    b"Autograder [Sun Nov 22 00:14:50 2026]: Here is the output from the autograder:\n"
    b"---\n"
    b"Autodriver: Job exited with status %d\n"
    b"bad \xff bytes, \x1b[2J escapes\r\n"
    b'{"scores": {"correctness": 70}}\n\n'
)


@dataclass
class Upstream:
    """Tango as it was recorded: the id a digit string, `poll` JSON until there is a feedback."""

    url: str = ""
    polls_until_ready: int = 2
    partials: list[dict[str, object]] = field(default_factory=list)
    status: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    jobs: list[dict[str, object]] = field(default_factory=list)
    idempotency_keys: list[str | None] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    md5s: bool = False
    resets: int = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/open/{key}/{lab}/", self.open)
        app.router.add_post("/upload/{key}/{lab}/", self.upload)
        app.router.add_post("/addJob/{key}/{lab}/", self.add_job)
        app.router.add_get("/poll/{key}/{lab}/{name}/", self.poll)
        app.router.add_get("/getPartialOutput/{key}/{id}/", self.partial)
        app.router.add_get("/jobs/{key}/{dead}/", self.list_jobs)
        app.router.add_get("/pool/{key}/", self.pools)
        app.router.add_post("/cancel/{key}/{lab}/{name}/", self.cancel)
        return app

    def answer(self, request: web.Request, message: object, status: int = 0, **fields: object) -> web.Response:
        if request.match_info["key"] != KEY:
            status, message, fields = -1, "Key not recognized", {}
        return web.json_response({"statusId": status, "statusMsg": message, **fields})

    async def open(self, request: web.Request) -> web.StreamResponse:
        if self.resets:
            self.resets -= 1
            assert request.transport is not None
            request.transport.abort()
        md5s = {name: hashlib.md5(content).hexdigest() for name, content in self.files.items()}
        return self.answer(request, "Found directory", files=md5s if self.md5s else {})

    async def upload(self, request: web.Request) -> web.Response:
        name = request.headers["Filename"].encode("utf-8", "surrogateescape").decode()
        assert "Transfer-Encoding" not in request.headers
        self.files[name] = await request.read()
        self.uploads.append(name)
        return self.answer(request, "Uploaded file")

    async def add_job(self, request: web.Request) -> web.Response:
        job = json.loads(await request.read())
        self.idempotency_keys.append(request.headers.get("Idempotency-Key"))
        if job["image"] == "nosuchimage":
            date = "Sun Nov 22 00:14:41 2026"
            return self.answer(request, [f"{date}|validateJob: Image not found: nosuchimage"], -1)
        self.jobs.append(job)
        return self.answer(request, "Job added", jobId=str(len(self.jobs)))

    async def poll(self, request: web.Request) -> web.Response:
        if self.polls_until_ready > 0:
            self.polls_until_ready -= 1
            return self.answer(request, "Output file not found", -1)
        return web.Response(body=FEEDBACK % self.status, content_type="application/octet-stream")

    async def partial(self, request: web.Request) -> web.Response:
        if not self.partials:
            return self.answer(request, "getPartialOutput request failed: Job 1 is not running yet", -1)
        return self.answer(request, "Partial output obtained", **self.partials.pop(0))

    async def list_jobs(self, request: web.Request) -> web.Response:
        job = {
            "id": 7, "name": "ok\x1b[2J", "assigned": False, "retries": 0, "timeout": 60, "notifyURL": None,
            "outputFile": f"courselabs/{KEY}-course-lab/output/ok.out", "vm": {"image": "autograding_image"},
            "trace": ["Sun Nov 22 00:14:40 2026|Added job ok:7 to queue"],
        }  # fmt: skip
        return self.answer(request, "Found list of jobs", jobs=[job] if request.match_info["dead"] == "0" else [])

    async def pools(self, request: web.Request) -> web.Response:
        pool = {"autograding_image": {"total": [1000, 1001], "free": [1000]}}
        return self.answer(request, "Found all pools", pools=pool)

    async def cancel(self, request: web.Request) -> web.Response:
        assert (request.match_info["lab"], request.match_info["name"]) == ("course-lab", "ok.out")
        return self.answer(request, "Job cancelled")


@pytest.fixture
async def server() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    runner = web.AppRunner(upstream.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield upstream
    await runner.cleanup()


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    lab = tmp_path / "my lab"
    (lab / "submissions").mkdir(parents=True)
    (lab / "submissions" / "answer.c").write_text("submitted")
    (lab / ".hidden").write_text("")
    (lab / "answer.c").write_text("handout")
    (lab / "Makefile").write_text("all:\n")
    (lab / "naïve test.txt").write_text("")
    return lab


async def tango(*arguments: object, url: str = "http://127.0.0.1:9", key: str = KEY) -> tuple[int, bytes, str]:
    """Exit status, standard output and standard error of the command."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TANGO_")}
    environment.update(TANGO_URL=url, PYTHONIOENCODING="utf-8")
    if key:
        environment["TANGO_KEY"] = key
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tango_async.cli.tango", *map(str, arguments),
        env=environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(180):
        output, errors = await process.communicate()
    assert b"Traceback" not in errors
    assert process.returncode is not None
    return process.returncode, output, errors.decode()


async def test_run_prints_the_feedback_byte_for_byte_and_the_live_output_once(server: Upstream, lab: Path) -> None:
    server.polls_until_ready = 5
    server.partials = [{"output": ""}, {"output": "tick 1\nti"}, {"output": "tick 1\ntick 2\n"}]
    code, output, errors = await tango("run", lab, "--with", lab / "submissions/answer.c", url=server.url)
    assert (code, output) == (0, FEEDBACK % 0)
    assert errors.count("tick 1\n") == 1 and "tick 2\n" in errors
    assert 'job 1: Success: Autodriver returned normally, exit status 0, {"correctness": 70}' in errors


async def test_run_sends_the_directorys_files_and_those_named_which_win(server: Upstream, lab: Path) -> None:
    await tango("run", lab, "--with", lab / "submissions/answer.c", "--timeout", 7, "--no-network", url=server.url)
    [job] = server.jobs
    sent = {file["destFile"]: server.files[file["localFile"]] for file in job["files"]}  # type: ignore[attr-defined]
    assert sent == {"Makefile": b"all:\n", "answer.c": b"submitted", "naïve test.txt": b""}
    assert (job["timeout"], job["disable_network"]) == (7, True)
    assert server.idempotency_keys[0]


async def test_run_asks_for_sizes_only_if_it_is_told_to(server: Upstream, lab: Path) -> None:
    await tango("run", lab, "--cores", "1.5", "--memory", 256, "--quiet-cores", url=server.url)
    server.polls_until_ready = 1
    await tango("run", lab, url=server.url)
    sized, plain = server.jobs
    assert (sized["vm"], sized["quiet"]) == ({"cores": 1.5, "memory": 256}, True)
    assert "vm" not in plain and "quiet" not in plain


async def test_a_file_that_the_server_has_is_not_sent_again(server: Upstream, lab: Path) -> None:
    server.md5s = True
    await tango("run", lab, url=server.url)
    server.uploads.clear()
    (lab / "answer.c").write_text("changed")
    await tango("run", lab, url=server.url)
    assert [name.partition("-")[2] for name in server.uploads] == ["answer.c"]


async def test_json_is_one_object(server: Upstream, lab: Path) -> None:
    code, output, _ = await tango("run", lab, "--json", url=server.url)
    job = json.loads(output)
    assert (code, job["id"], job["exit_status"]) == (0, 1, 0)
    assert job["verdict"] == "Success: Autodriver returned normally"
    assert job["score"] == {"scores": {"correctness": 70}}
    assert job["feedback"].startswith("Autograder [") and job["seconds"] > 0


async def test_copies_have_outputs_and_keys_of_their_own(server: Upstream, lab: Path) -> None:
    code, output, errors = await tango("run", lab, "-j", 3, url=server.url)
    assert (code, errors.count("Success")) == (0, 3)
    assert output.startswith(b"3 copies: 3 passed, 0 failed; median ")
    assert len({job["output_file"] for job in server.jobs}) == len(set(server.idempotency_keys)) == 3
    _, output, _ = await tango("run", lab, "-j", 2, "--json", "-q", url=server.url)
    assert [job["id"] for job in json.loads(output)["jobs"]] == [4, 5]


async def test_a_job_whose_make_failed_exits_1(server: Upstream, lab: Path) -> None:
    server.status = 2
    code, _, _ = await tango("run", lab, url=server.url)
    assert code == 1


async def test_on_a_terminal_escapes_of_a_job_are_shown_not_obeyed(server: Upstream, lab: Path) -> None:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tango_async.cli.tango", "run", str(lab), "--url", server.url, "--key", KEY,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = await asyncio.to_thread(read_all, ours)
    assert await process.wait() == 0
    assert b"bad \\xff bytes, ^[[2J escapes^M" in shown
    assert b"uploading" in shown


def read_all(descriptor: int) -> bytes:
    content = b""
    try:
        while part := os.read(descriptor, 65536):
            content += part
    except OSError as e:
        assert e.errno == errno.EIO  # how a terminal says that nobody writes any more
    os.close(descriptor)
    return content


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda lab: (lab / "Makefile").unlink(), "has no Makefile"),
        (lambda lab: lab.rename(lab.with_name("gone")), "No such file or directory"),
        (lambda lab: (lab / "bad\nname").write_text(""), "control characters"),
        (lambda lab: (lab / "Makefile").rename(lab / "autograde-Makefile"), ""),
    ],
)
async def test_a_directory_that_cannot_be_graded_is_refused_before_anything_is_sent(
    server: Upstream, lab: Path, spoil: object, why: str
) -> None:
    spoil(lab)  # type: ignore[operator]
    code, _, errors = await tango("run", lab, url=server.url)
    assert code == (2 if why else 0) and why in errors
    assert bool(server.files) == (not why)


async def test_a_file_in_place_of_the_directory_is_refused(server: Upstream, lab: Path) -> None:
    code, _, errors = await tango("run", lab / "Makefile", url=server.url)
    assert code == 2 and "is not a directory" in errors


async def test_refusals_are_the_servers_words(server: Upstream, lab: Path) -> None:
    assert await tango("jobs", url=server.url, key="wrong") == (2, b"", "tango: Key not recognized\n")
    code, _, errors = await tango("run", lab, "--image", "nosuchimage", url=server.url)
    assert (code, errors) == (2, "tango: validateJob: Image not found: nosuchimage\n")
    code, _, errors = await tango("info", url=server.url)
    assert (code, errors) == (2, f"tango: {server.url} answered 404 Not Found\n")


async def test_what_cannot_be_reached_is_named_without_the_key(lab: Path) -> None:
    code, _, errors = await tango("jobs", url="http://127.0.0.1:9")
    assert (code, errors) == (2, "tango: cannot reach http://127.0.0.1:9: Connection refused\n")
    for wrong in ("nonsense", "ftp://127.0.0.1", "http://"):
        code, _, errors = await tango("jobs", url=wrong)
        assert code == 2 and wrong in errors and KEY not in errors
    code, _, errors = await tango("jobs", key="")
    assert code == 2 and "TANGO_KEY" in errors


async def test_a_reset_connection_is_tried_again(server: Upstream, lab: Path) -> None:
    server.resets = 1
    code, _, _ = await tango("run", lab, "-q", url=server.url)
    assert code == 0 and len(server.jobs) == 1


async def test_jobs_and_pools_are_listed_and_a_job_is_cancelled(server: Upstream) -> None:
    _, output, _ = await tango("jobs", url=server.url)
    assert [b" ".join(line.split()) for line in output.splitlines()][1] == (
        b"7 waiting ok^[[2J autograding_image Added job ok:7 to queue"
    )
    _, output, _ = await tango("job", 7, url=server.url)
    assert b"Sun Nov 22 00:14:40 2026  Added job ok:7 to queue" in output
    _, output, _ = await tango("pools", "--json", url=server.url)
    assert json.loads(output)["autograding_image"]["free"] == [1000]
    assert await tango("cancel", 7, url=server.url) == (0, b"Job cancelled\n", "")
    assert (await tango("cancel", 8, url=server.url))[2] == "tango: the server lists no job 8\n"
