"""open, upload and poll: what Tango answers, and what it never should have."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.api import Api, head
from tango_async.errors import StoreUnavailable
from tango_async.files.base import StoredFile
from tango_async.model import Verdict

KEY = "Key not recognized"
OUTPUT = "/poll/test/lab/student@example.edu_1_lab_autograde.txt"


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


@pytest.fixture
async def lab(api: Api) -> Api:
    await api.ready_lab()
    return api


async def test_open_says_whether_the_directory_is_new(api: Api) -> None:
    assert (await api.get("/open/test/lab")).outcome == (0, "Created directory")
    assert (await api.get("/open/test/lab/")).outcome == (0, "Found directory")


async def test_open_gives_md5s_so_that_the_client_skips_what_is_there(lab: Api) -> None:
    files = (await lab.get("/open/test/lab/")).json["files"]
    assert files["hello.sh"] == md5(b"echo hello\n")
    assert (await lab.upload("hello.sh", b"echo hello\n")).outcome == (0, "File exists")
    assert (await lab.upload("hello.sh", b"echo other\n")).outcome == (0, "Uploaded file")


@pytest.mark.parametrize("path", ["my%20lab", "caf%C3%A9", "%F0%9F%8E%93"])
async def test_courselabs_may_have_unicode_names(api: Api, path: str) -> None:
    assert (await api.get(f"/open/test/{path}/")).outcome == (0, "Created directory")


@pytest.mark.parametrize("path", ["a%2Fb", "..%2f..", "a%00b", "%FF", "x" * 300, "x" * 252, "a%0Ab", ".tango"])
async def test_a_courselab_that_is_no_plain_name_is_refused(api: Api, labs: Path, path: str) -> None:
    for request in (api.get(f"/open/test/{path}/"), api.get(f"/poll/test/{path}/x"), api.add(path)):
        reply = await request
        assert (reply.status, reply.outcome[0]) == (200, -1)
    assert [p.name for p in labs.iterdir()] == [".tango"]


@pytest.mark.parametrize(
    "path", ["/open/test/../", "/open/test/%2e%2e/", "/open/../x/", "/open/test//", "/open/test/a/b"]
)
async def test_a_path_that_climbs_leads_nowhere(api: Api, labs: Path, path: str) -> None:
    assert (await api.get(path)).json["statusId"] == -1
    assert [p.name for p in labs.iterdir()] == [".tango"]


@pytest.mark.parametrize("header", ["Filename", "filename", "FILENAME"])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json", "text/plain"])
async def test_the_body_is_taken_raw_whatever_it_is_called(lab: Api, labs: Path, header: str, kind: str) -> None:
    body = b"a=1&b=%20+\r\n{\xff\x00"
    reply = await lab.post("/upload/test/lab", body, f"{header}: f\r\nContent-Type: {kind}\r\n")
    assert reply.outcome == (0, "Uploaded file")
    assert (labs / "test-lab" / "f").read_bytes() == body


async def test_a_filename_is_utf_8_and_a_file_may_be_empty(lab: Api, labs: Path) -> None:
    assert (await lab.upload("naïve 文件.c", b"")).outcome == (0, "Uploaded file")
    assert (labs / "test-lab" / "naïve 文件.c").read_bytes() == b""


BAD_NAMES = [
    b"../x", b"..", b".", b"", b"/etc/passwd", b"a/b", b"sub/x", b"caf\xe9", b"x" * 256, b"x" * 30_000,
    b"output", b".tango-x", "a\u2028b".encode(), b"a\x7fb", b"a\0b",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_bad_filename_is_refused_in_words(lab: Api, labs: Path, name: bytes) -> None:
    before = sorted(labs.rglob("*"))
    reply = await lab.post("/upload/test/lab/", b"x", b"Filename: " + name + b"\r\n")
    assert reply.outcome[0] == -1
    assert reply.message.startswith(("Bad Filename: ", "Invalid header value char"))
    assert sorted(labs.rglob("*")) == before


async def test_an_upload_without_a_name_or_a_courselab_is_refused(api: Api) -> None:
    assert (await api.post("/upload/test/lab/", b"x")).outcome == (-1, "Missing Filename header")
    assert (await api.upload("f", b"x")).outcome == (-1, "Courselab not found")


FORM = (
    b'--B\r\nContent-Disposition: form-data; name="note"\r\n\r\nhi\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\nsome\r\nbytes\xff\r\n--B--\r\n'
)
NESTED = b"--B\r\nContent-Type: multipart/mixed; boundary=B\r\n\r\n" * 3000
MULTIPART = "Content-Type: multipart/form-data; boundary=B\r\n"


async def test_a_multipart_form_gives_its_first_file(lab: Api, labs: Path) -> None:
    assert (await lab.post("/upload/test/lab/", FORM % b"form.c", MULTIPART)).outcome == (0, "Uploaded file")
    assert (labs / "test-lab" / "form.c").read_bytes() == b"some\r\nbytes\xff"


async def test_a_form_under_a_filename_header_is_just_bytes(lab: Api, labs: Path) -> None:
    await lab.post("/upload/test/lab/", FORM % b"form.c", MULTIPART + "Filename: raw\r\n")
    assert (labs / "test-lab" / "raw").read_bytes() == FORM % b"form.c"


@pytest.mark.parametrize("body", [b"", b"junk", FORM[:20], FORM[:80], FORM[:130], FORM % b"../x", b"--B--\r\n", NESTED])
async def test_a_broken_form_is_refused_and_leaves_nothing(lab: Api, labs: Path, body: bytes) -> None:
    before = sorted(labs.rglob("*"))
    assert (await lab.post("/upload/test/lab/", body, MULTIPART)).outcome[0] == -1
    assert sorted(labs.rglob("*")) == before


async def test_of_two_uploads_at_once_one_stands_whole(lab: Api, labs: Path) -> None:
    bodies = [bytes([n]) * 3_000_000 for n in (1, 2)]
    replies = await asyncio.gather(*(lab.upload("same", body) for body in bodies))
    assert [r.outcome for r in replies] == [(0, "Uploaded file")] * 2
    assert (labs / "test-lab" / "same").read_bytes() in bodies


async def test_poll_gives_the_newest_jobs_output_and_never_an_older_ones(lab: Api) -> None:
    await lab.add()
    await lab.end(b"first")
    assert (await lab.get(OUTPUT)).body == b"first"
    await lab.add(timeout=21)
    assert (await lab.get(OUTPUT)).outcome == (-1, "Output file not found")
    await lab.end(b"second")
    assert (await lab.get(OUTPUT)).body == b"second"


@pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, 9_000_000])
async def test_poll_gives_every_byte(lab: Api, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)
    await lab.add()
    await lab.end(body)
    reply = await lab.get(OUTPUT)
    assert (reply.status, reply.type, reply.body) == (200, "application/octet-stream", body)


async def test_poll_of_a_store_that_breaks_off_is_cut_off_and_says_nothing_else(
    lab: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"first half"
        raise StoreUnavailable("away")

    async def output(ref: str) -> StoredFile:
        return StoredFile(size=500, read=broken)

    await lab.add()
    await lab.end(b"x")
    monkeypatch.setattr(lab.store, "output", output)
    reader, writer = await lab.connect()
    writer.write(head("GET", OUTPUT))
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert body == b"first half"


async def test_a_store_that_is_away_is_said_in_tangos_form(lab: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*of: object) -> None:
        raise StoreUnavailable("s3.endpoint: http://host does not answer")

    for method in ("open_lab", "put", "pin"):
        monkeypatch.setattr(lab.store, method, away)
    for reply in (await lab.get("/open/test/lab/"), await lab.upload("a", b"x" * 3_000_000), await lab.add()):
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert reply.outcome == (-1, "The file store cannot be reached; try again soon")


async def test_poll_of_a_dropped_or_unknown_output_finds_none(lab: Api) -> None:
    await lab.add()
    claim = await lab.end(b"x", Verdict.SUCCESS)
    await lab.store.drop_output(f"{claim.id}-{claim.seq}")
    assert (await lab.get(OUTPUT)).outcome == (-1, "Output file not found")
    assert (await lab.get("/poll/test/lab/none")).outcome == (-1, "Output file not found")
    assert (await lab.get("/poll/test/nolab/none/")).outcome == (-1, "Output file not found")


async def test_poll_of_a_job_that_died_queued_tells_why(lab: Api) -> None:
    await lab.add()
    await lab.post("/cancel/test/1")
    reply = await lab.get(OUTPUT)
    assert reply.type == "application/octet-stream"
    assert b"cancelled" in reply.body
