"""Keys in a file: what each may do, how it is read again, and what a wrong one cannot do."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from support.api import Api, Reply, job, serving
from support.jobs import claim_one
from tango_async.config import Settings
from tango_async.errors import ConfigError
from tango_async.http import keys as keys_module
from tango_async.http.keys import Keys

HASHED = "h4shed-key"
FILE = f"""
[keys.course]
key = "course-key"
courselabs = ["15213-", "15513-"]
[keys.plain]
key = "plainkey"
[keys.staff]
key = "staffkey"
scopes = ["submit", "admin"]
[keys.limited-staff]
key = "ta"
scopes = ["admin"]
courselabs = ["15213-"]
[keys.hashed]
sha256 = "{sha256(HASHED.encode()).hexdigest()}"
[keys.slow]
key = "slowkey"
rate_per_s = 0.01
burst = 3
"""

UNKNOWN = (-1, "Key not recognized")
NO_LAB = (-1, "This key may not use that courselab")
NO_ADMIN = (-1, "This key may not do that: it lacks the scope admin")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    write(file, FILE)
    return file


def write(file: Path, text: str) -> None:
    """Whole, as an editor or a deployment does it, and long ago enough to be taken for settled."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    os.utime(draft, (1, 1))
    draft.replace(file)


@pytest.fixture
async def api(settings: Settings, file: Path) -> AsyncIterator[Api]:
    http = msgspec.structs.replace(settings.http, keys_file=file)
    async with serving(msgspec.structs.replace(settings, http=http)) as api:
        yield api


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "LOOK_S", 0.0)


async def add(api: Api, key: str, lab: str, **changes: object) -> Reply:
    await api.get(f"/open/{key}/{lab}/")
    await api.post(f"/upload/{key}/{lab}/", b"autograde:\n", "Filename: Makefile\r\n")
    files = [{"localFile": "Makefile", "destFile": "Makefile"}]
    return await api.post(f"/addJob/{key}/{lab}/", json.dumps(job(files=files, **changes)).encode())


async def listed(api: Api, key: str, which: int = 0) -> list[int]:
    return [one["id"] for one in (await api.get(f"/jobs/{key}/{which}/")).json["jobs"]]


async def test_keys_of_the_settings_and_of_the_file_all_open(api: Api) -> None:
    for key in ("test", "plainkey", "staffkey", HASHED):
        assert (await api.get(f"/open/{key}/lab/")).outcome == (0, "Created directory")
        assert (api.settings.store.labs / f"{key}-lab").is_dir()
    for key in ("nokey", "course", "plainkey2", sha256(HASHED.encode()).hexdigest(), "%20", "\u00e9"):
        assert (await api.send("GET", f"/open/{key}/lab/".replace("\u00e9", "%C3%A9"))).outcome == UNKNOWN


async def test_a_limited_key_uses_its_courselabs_only(api: Api) -> None:
    assert (await add(api, "course-key", "15213-lab1")).outcome == (0, "Job added")
    for lab in ("15213", "lab", "x15213-lab", "15411-lab", "1521", "course-key-15213-lab"):
        assert (await api.get(f"/open/course-key/{lab}/")).outcome == NO_LAB
        assert (await api.post(f"/upload/course-key/{lab}/", b"x", "Filename: x\r\n")).outcome == NO_LAB
        assert (await api.post(f"/addJob/course-key/{lab}/", b"{}")).outcome == NO_LAB
        assert (await api.get(f"/poll/course-key/{lab}/out")).outcome == NO_LAB
        assert (await api.post(f"/cancel/course-key/{lab}/out/")).outcome == NO_LAB


@pytest.mark.parametrize("lab", ["..%2F15213-x", "15213-..%2F..", "15213-%2e%2e%2fx", "15213-%00"])
async def test_no_escape_leads_out_of_a_prefix(api: Api, lab: str) -> None:
    reply = await api.send("GET", f"/open/course-key/{lab}/")
    assert reply.json["statusId"] == -1 or reply.status == 404
    assert {path.name for path in api.settings.store.labs.iterdir()} == {".tango"}


async def test_a_key_sees_its_own_jobs_and_an_admin_all(api: Api) -> None:
    mine = (await add(api, "course-key", "15213-a")).json["jobId"]
    plain = (await add(api, "plainkey", "15213-a")).json["jobId"]
    old = (await add(api, "test", "lab")).json["jobId"]
    assert await listed(api, "course-key") == [mine]
    assert await listed(api, "plainkey") == [plain]
    assert await listed(api, "staffkey") == await listed(api, "test") == [mine, plain, old]
    assert await listed(api, "ta") == []
    for job_id in (mine, plain, old):
        await api.post(f"/cancel/test/{job_id}/")
    assert await listed(api, "course-key", 1) == [mine]
    assert sorted(await listed(api, "staffkey", 1)) == [mine, plain, old]


async def test_another_keys_job_can_be_neither_read_nor_cancelled(api: Api) -> None:
    job_id = (await add(api, "course-key", "15213-a")).json["jobId"]
    await claim_one(api.queue, request="r")
    for key in ("plainkey", "ta"):
        assert (await api.post(f"/cancel/{key}/{job_id}/")).outcome == (-2, "Job not found")
        assert (await api.get(f"/getPartialOutput/{key}/{job_id}/")).json["output"] == ""
    assert (await api.post(f"/cancel/course-key/{job_id}/")).outcome == (0, "Job cancellation requested")


@pytest.mark.parametrize("settings", [{"http": {"list_limit": 2}}], indirect=True)
async def test_a_keys_jobs_are_found_behind_those_of_others(api: Api) -> None:
    mine = (await add(api, "plainkey", "lab")).json["jobId"]
    for n in range(5):
        await add(api, "test", "lab", output_file=f"{n}")
    assert await listed(api, "plainkey") == [mine]
    for job_id in range(mine, mine + 6):
        await api.queue.cancel(job_id)
    assert await listed(api, "plainkey", 1) == [mine]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/prealloc/KEY/autograding_image/1/"),
        ("GET", "/prealloc/KEY/autograding_image/1"),
        ("POST", "/scale/KEY/0/1/"),
        ("POST", "/build/KEY/"),
        ("GET", "/callbacks/KEY/"),
        ("GET", "/callbacks/KEY/1/"),
        ("POST", "/callbacks/KEY/1"),
        ("POST", "/erase/KEY/"),
        ("GET", "/hosts/KEY/"),
        ("GET", "/images/KEY/"),
        ("POST", "/images/KEY/pull/group/name"),
        ("POST", "/images/KEY/push/name/"),
        ("POST", "/hosts/KEY/host/pause/"),
        ("POST", "/hosts/KEY/host/resume"),
        ("POST", "/hosts/KEY/host/slots/2/"),
    ],
)
async def test_what_is_for_admins_needs_the_scope(api: Api, method: str, path: str) -> None:
    for key in ("plainkey", "course-key"):
        assert (await api.send(method, path.replace("KEY", key), b"")).outcome == NO_ADMIN
    for key in ("test", "staffkey", "ta"):
        assert (await api.send(method, path.replace("KEY", key), b"")).outcome != NO_ADMIN


async def test_a_limited_admin_reaches_its_own_only(api: Api) -> None:
    mine = (await add(api, "ta", "15213-a")).json["jobId"]
    await api.end(b"x")
    other = (await add(api, "plainkey", "15213-a")).json["jobId"]
    await api.end(b"x")
    assert [one["id"] for one in (await api.get("/callbacks/ta/")).json["callbacks"]] == [mine]
    assert (await api.post(f"/callbacks/ta/{other}/")).outcome == (-2, "Job not found")
    assert (await api.get(f"/callbacks/ta/{other}/")).json["statusId"] == -1
    erased = await api.post("/erase/ta/", b'{"submitter": "student@example.edu"}')
    assert erased.json["erased"]["jobs"] == 1
    assert await listed(api, "test", 1) == [other]


async def test_a_key_that_comes_too_often_is_told_to_wait(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(keys_module, "time", SimpleNamespace(monotonic=lambda: now))
    replies = [await api.get("/info/slowkey/") for _ in range(5)]
    assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
    assert replies[-1].outcome == (-1, "Too many requests with this key; try again in 100 s")
    assert replies[-1].headers["retry-after"] == "100"
    assert (await api.get("/info/plainkey/")).status == 200
    upload = await api.post("/upload/slowkey/lab/", b"x" * 100_000, "Filename: x\r\n")
    assert upload.status == 429


async def test_a_bearer_is_held_to_the_same(api: Api) -> None:
    bearer = "Authorization: Bearer course-key\r\n"
    assert (await api.send("GET", "/open/-/lab/", headers=bearer)).outcome == NO_LAB
    assert (await api.send("GET", "/open/-/15213-a/", headers=bearer)).outcome == (0, "Created directory")
    assert (await api.send("POST", "/build/-/", b"", headers=bearer)).outcome == NO_ADMIN


async def test_a_changed_file_is_in_force_without_a_restart(api: Api, file: Path, at_once: None) -> None:
    write(file, FILE.replace('"plainkey"', '"newkey"'))
    assert (await api.get("/info/plainkey/")).outcome == UNKNOWN
    assert (await api.get("/info/newkey/")).json["statusId"] == 0


@pytest.mark.parametrize(
    "broken", ["", "[keys", "[keys.x]\nkey = 'y'\nscope = 1", '[keys.x]\nkey = "test-2"', "[keys]", None, "\x00", "dir"]
)
async def test_a_broken_file_changes_nothing_and_is_told(
    api: Api, file: Path, at_once: None, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if broken is None:
        file.unlink()
    elif broken == "dir":
        file.unlink()
        file.mkdir()
    else:
        write(file, broken)
    for _ in range(5):
        assert (await api.get("/info/plainkey/")).json["statusId"] == 0
    assert (await api.get("/info/y/")).outcome == (await api.get("/info/test-2/")).outcome == UNKNOWN
    told = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(told) == 1 and "keys.toml" in told[0].getMessage()
    if file.is_dir():
        file.rmdir()
    write(file, FILE.replace('"plainkey"', '"newkey"'))
    assert (await api.get("/info/newkey/")).json["statusId"] == 0
    assert (await api.get("/info/plainkey/")).outcome == UNKNOWN


def test_the_file_is_looked_at_once_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys_module.LOOK_S == 1.0
    monkeypatch.setattr(keys_module, "LOOK_S", 600.0)
    keys, looks = Keys((), file), 0
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        nonlocal looks
        looks += path == file
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    for _ in range(1000):
        keys.match("plainkey")
    assert looks == 0
    monkeypatch.setattr(keys_module, "LOOK_S", 0.0)
    keys.match("plainkey")
    assert looks == 1


def test_a_file_changed_in_one_tick_of_its_clock_is_seen(file: Path, at_once: None) -> None:
    file.write_text('[keys.x]\nkey = "one1"\n')
    keys, at = Keys((), file), file.stat()
    file.write_text('[keys.x]\nkey = "two2"\n')
    os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert keys.match("one1") is None and keys.match("two2") is not None


def entry(**values: str) -> str:
    return "[keys.x]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key"),
        ("[keys]", "holds no key"),
        ("keys = 3", "holds no key"),
        ('[keys]\nx = "secretkey"', "keys.x: Expected"),
        ('[key.x]\nkey = "a"', "something else"),
        (entry(), "either key or sha256"),
        (entry(key='"a"', sha256=f'"{"0" * 64}"'), "either key or sha256"),
        (entry(sha256='"123"'), "keys.x: "),
        (entry(key='""'), "must not"),
        (entry(key='"a/b"'), "must not"),
        (entry(key='".a"'), "must not"),
        (entry(key='"a\\u0000b"'), "must not"),
        (entry(key='"a"', scopes="[]"), "keys.x: "),
        (entry(key='"a"', scopes='["root"]'), "keys.x: "),
        (entry(key='"a"', courselabs="[]"), "keys.x: "),
        (entry(key='"a"', courselabs='[""]'), "keys.x: "),
        (entry(key='"a"', rate_per_s="0"), "keys.x: "),
        (entry(key='"a"', rate_per_s="inf"), "keys.x: "),
        (entry(key='"a"', rate_per_s="nan"), "keys.x: "),
        (entry(key='"a"', burst="3"), "burst without"),
        (entry(key='"secretkey"', limit="1"), "keys.x: .*limit"),
        ('[keys.x]\nkey = "secretkey', "no TOML"),
        (entry(key='"test"'), "same key"),
        (entry(key='"test-lab"'), "alias"),
        (entry(key='"te"') + '[keys.y]\nkey = "te-st"', "alias"),
        (entry(key='"te-st-ing"') + f'[keys.y]\nsha256 = "{sha256(b"te-st").hexdigest()}"', "alias"),
        (entry(key='"a"') + '[keys.y]\nkey = "a"', "same key"),
    ],
)
def test_a_wrong_file_stops_the_start_and_shows_no_key(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as e:
        Keys(("test",), file)
    assert "secretkey" not in str(e.value) and "keys.toml" in str(e.value)


def test_a_file_that_is_none_stops_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))
    for name in ("gone", "fifo", "large", "."):
        with pytest.raises(ConfigError, match=r"keys_file"):
            Keys((), tmp_path / name)


def test_a_key_known_by_its_digest_is_refused_if_it_turns_out_to_alias(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.toml"
    digests = [sha256(word.encode()).hexdigest() for word in ("te-st", "test-2", "a/b", "good")]
    file.write_text("".join(f'[keys.k{n}]\nsha256 = "{digest}"\n' for n, digest in enumerate(digests)))
    keys = Keys(("test", "te"), file)
    assert keys.match("te-st") is keys.match("test-2") is keys.match("a/b") is None
    assert keys.match("good") is not None
    assert "alias" not in caplog.text and "is refused" in caplog.text and "te-st" not in caplog.text


def test_no_key_that_is_known_is_shown(file: Path, at_once: None) -> None:
    keys = Keys(("test",), file)
    assert keys.redact(f"course-key test plainkey {HASHED}") == f"KEY KEY KEY {HASHED}"
    keys.match(HASHED)
    write(file, entry(key='"other"'))
    assert keys.match("plainkey") is None
    assert keys.redact(f"plainkey-lab {HASHED}-lab other") == "KEY-lab KEY-lab KEY"
