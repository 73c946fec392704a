"""addJob: what becomes a job, what is refused and in which words, and what the same job twice is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from support.api import Api, job
from tango_async.config import ImageLimits, Settings
from tango_async.http import fleet
from tango_async.model import parts_of

MIB = 1024**2


@pytest.fixture
async def lab(api: Api) -> Api:
    await api.ready_lab()
    return api


async def spec_of(api: Api, reply: Any) -> Any:
    assert reply.outcome == (0, "Job added"), reply.message
    record = await api.queue.job(reply.json["jobId"])
    assert record is not None
    return record.spec


def reasons(reply: Any) -> list[str]:
    """What stands behind the date and `validateJob:` in each line but the last."""
    assert reply.json["statusId"] == -1
    *lines, last = [line.split("|validateJob: ")[1] for line in reply.message]
    assert last == f"Job rejected: {len(lines)} errors"
    return lines


def pins(labs: Path) -> list[Path]:
    return list((labs / ".tango" / "pins").iterdir())


async def test_a_job_is_what_autolab_asked_for(lab: Api, settings: Settings) -> None:
    spec = await spec_of(lab, await lab.add())
    assert (spec.name, spec.courselab, spec.image) == ("course_lab_1_student@example.edu", "lab", "autograding_image")
    assert spec.output_name == "student@example.edu_1_lab_autograde.txt"
    assert [(f.local, f.dest) for f in spec.files] == [("autograde-Makefile", "Makefile"), ("hello.sh", "hello.sh")]
    assert spec.callback_url == job()["callback_url"]
    assert (spec.limits.timeout_s, spec.limits.output_bytes) == (20, settings.limits.output_bytes)
    assert spec.network


async def test_its_inputs_stay_as_they_were(lab: Api) -> None:
    spec = await spec_of(lab, await lab.add())
    await lab.upload("hello.sh", b"echo changed\n")
    held = lab.store.inputs(spec.pin, spec.files)[1]
    assert b"".join([c async for c in held.chunks()]) == b"echo hello\n"


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (7, 7),
        (0, 60),
        (None, 60),
        (-5, 60),
        (1.5, 2),
        (0.01, 1),
        (3600, 3600),
        (3601, 3600),
        (1e300, 3600),
        (10**40, 3600),
    ],
)
async def test_the_timeout_has_a_default_and_a_ceiling(lab: Api, asked: float | None, seconds: int) -> None:
    spec = await spec_of(lab, await lab.add(timeout=asked))
    assert spec.limits.timeout_s == seconds
    cut = [note for note in spec.notes if "was cut" in note]
    assert bool(cut) == (asked is not None and asked > 3600)


@pytest.mark.parametrize(
    ("asked", "size"), [(0, 1_024_000), (None, 1_024_000), (-1, 1_024_000), (100, 102_400), (0.5, 512), (1e9, 16 * MIB)]
)
async def test_the_output_limit_has_a_default_and_a_ceiling(lab: Api, asked: float | None, size: int) -> None:
    spec = await spec_of(lab, await lab.add(max_kb=asked))
    assert spec.limits.output_bytes == size


async def test_what_was_cut_stands_in_the_trace(lab: Api) -> None:
    await lab.add(timeout=99_999, max_kb=99_999)
    (entry,) = (await lab.get("/jobs/test/0/")).json["jobs"]
    trace = " ".join(entry["trace"])
    assert "cut to 3600 s" in trace and "cut to 16777216 bytes" in trace
    assert "Added job" in entry["trace"][-1]


GIB = 1024**3


@pytest.mark.parametrize(
    ("asked", "name", "size"),
    [
        ({"vm": {"cores": 2, "memory": 1024}}, "cores", 2.0),
        ({"vm": {"cores": 2, "memory": 2048}}, "memory_bytes", 2 * GIB),
        ({"vm": {"cores": "2", "memory": " 512 "}}, "memory_bytes", 512 * MIB),
        ({"vm": {"cores": "0.5"}}, "cores", 0.5),
        ({"vm": {"cores": 0, "memory": "0"}}, "cores", 1.0),
        ({"vm": {"cores": None, "memory": ""}}, "memory_bytes", GIB),
        ({"vm": None, "limits": None}, "processes", 128),
        ({"vm": {}, "limits": {}}, "disk_bytes", 512 * MIB),
        ({"vm": {"disk": 7, "name": "x", "quiet": None}}, "disk_bytes", 512 * MIB),
        ({"limits": {"processes": "300", "file_mb": 0.5 + 0.5, "disk_mb": 64}}, "processes", 300),
        ({"limits": {"file_mb": 1.5}}, "file_bytes", 3 * MIB // 2),
        ({"limits": {"disk_mb": 64}}, "disk_bytes", 64 * MIB),
    ],
)
async def test_a_job_has_the_sizes_that_it_asks_for(lab: Api, asked: dict[str, Any], name: str, size: float) -> None:
    spec = await spec_of(lab, await lab.add(**asked))
    assert getattr(spec.limits, name) == size
    assert not [note for note in spec.notes if "was cut" in note]


@pytest.mark.parametrize(
    ("asked", "name", "size", "said"),
    [
        ({"vm": {"cores": 4.5}}, "cores", 4.0, "The number of cores asked for was cut to 4,"),
        ({"vm": {"memory": "100000"}}, "memory_bytes", 4 * GIB, "The memory asked for was cut to 4096 MB,"),
        ({"limits": {"processes": 9999}}, "processes", 1024, "The number of processes asked for was cut to 1024,"),
        ({"limits": {"file_mb": 9999}}, "file_bytes", GIB, "The file size asked for was cut to 1024 MB,"),
        ({"limits": {"disk_mb": 9999}}, "disk_bytes", 2 * GIB, "The disk size asked for was cut to 2048 MB,"),
    ],
)
async def test_a_size_above_the_most_is_cut_and_the_trace_says_so(
    lab: Api, asked: dict[str, Any], name: str, size: float, said: str
) -> None:
    spec = await spec_of(lab, await lab.add(**asked))
    assert getattr(spec.limits, name) == size
    (entry,) = (await lab.get("/jobs/test/0/")).json["jobs"]
    assert any(said in line for line in entry["trace"])


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"vm": {"cores": -1}}, "vm.cores"),
        ({"vm": {"cores": "-1"}}, "vm.cores"),
        ({"vm": {"cores": "nan"}}, "vm.cores"),
        ({"vm": {"cores": "inf"}}, "vm.cores"),
        ({"vm": {"cores": "two"}}, "vm.cores"),
        ({"vm": {"cores": "1_0"}}, "vm.cores"),
        ({"vm": {"cores": "0x10"}}, "vm.cores"),
        ({"vm": {"cores": "²"}}, "vm.cores"),
        ({"vm": {"cores": 1e300}}, "vm.cores"),
        ({"vm": {"cores": 10**40}}, "vm.cores"),
        ({"vm": {"cores": 0.0001}}, "vm.cores"),
        ({"vm": {"cores": "9" * 400}}, "vm.cores"),
        ({"vm": {"memory": 1}}, "vm.memory"),
        ({"vm": {"memory": 2**40}}, "vm.memory"),
        ({"limits": {"processes": 1}}, "limits.processes"),
        ({"limits": {"file_mb": "-5"}}, "limits.file_mb"),
        ({"limits": {"disk_mb": 0.5}}, "limits.disk_mb"),
    ],
)
async def test_a_size_that_makes_no_sense_is_refused_by_name(lab: Api, asked: dict[str, Any], field: str) -> None:
    (reason,) = reasons(await lab.add(**asked))
    assert reason.startswith(f"Bad {field}: expected a number from ")
    assert pins(lab.settings.store.labs) == []


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"vm": "big"}, "vm"),
        ({"vm": [1]}, "vm"),
        ({"vm": {"cores": True}}, "vm.cores"),
        ({"vm": {"memory": {}}}, "vm.memory"),
        ({"limits": {"processes": [1]}}, "limits.processes"),
        ({"quiet": "yes"}, "quiet"),
        ({"vm": {"quiet": 1}}, "vm.quiet"),
    ],
)
async def test_a_size_of_the_wrong_kind_is_refused_by_name(lab: Api, asked: dict[str, Any], where: str) -> None:
    reply = await lab.add(**asked)
    assert reply.json["statusId"] == -1 and reply.message.startswith(f"{where}: Expected ")


async def test_no_number_in_json_is_refused(lab: Api) -> None:
    reply = await lab.add_raw(json.dumps(job(vm={"cores": float("nan")})).encode())
    assert reply.json["statusId"] == -1 and reply.message.startswith("Malformed JSON")


@pytest.mark.parametrize(
    "settings",
    [
        {
            "limits": {
                "image": (
                    ImageLimits(name="autograding_*", max_cores=8, memory_bytes=2 * GIB, max_processes=50),
                    ImageLimits(name="*", max_cores=1),
                )
            }
        }
    ],
    indirect=True,
)
async def test_an_image_has_limits_of_its_own(lab: Api) -> None:
    spec = await spec_of(lab, await lab.add(vm={"cores": 6}, limits={"processes": 60}))
    assert (spec.limits.cores, spec.limits.memory_bytes, spec.limits.processes) == (6, 2 * GIB, 50)
    assert spec.slots == 6
    assert ["processes" in note for note in spec.notes if "was cut" in note] == [True]


async def test_inputs_must_fit_on_the_disk_that_the_job_asks_for(lab: Api) -> None:
    await lab.upload("hello.sh", bytes(2 * MIB))
    (reason,) = reasons(await lab.add(limits={"disk_mb": 1}))
    assert reason.startswith("Input files are too large")
    assert pins(lab.settings.store.labs) == []


@pytest.mark.parametrize(
    ("asked", "quiet"),
    [({}, False), ({"quiet": True}, True), ({"vm": {"quiet": True}}, True), ({"quiet": None}, False)],
)
async def test_a_job_may_ask_for_quiet_cores(lab: Api, asked: dict[str, Any], quiet: bool) -> None:
    spec = await spec_of(lab, await lab.add(**asked))
    assert (spec.quiet, spec.class_name) == (quiet, "autograding_image|quiet" if quiet else "autograding_image")


@pytest.mark.parametrize(
    ("asked", "requires"),
    [([], ()), (None, ()), (["gpu"], ("gpu",)), (["gpu", "avx512", "gpu"], ("avx512", "gpu")), (["a._-9"], ("a._-9",))],
)
async def test_a_job_may_require_labels_of_its_host(
    lab: Api, asked: list[str] | None, requires: tuple[str, ...]
) -> None:
    spec = await spec_of(lab, await lab.add(requires=asked))
    assert spec.requires == requires
    assert parts_of(spec.class_name) == ("autograding_image", False, frozenset(requires))


@pytest.mark.parametrize(
    "asked", [["GPU"], ["a b"], ["-a"], ["a+b"], ["a|b"], [""], ["a" * 33], ["gpu\n"], [str(n) for n in range(9)]]
)
async def test_what_is_no_label_is_refused(lab: Api, asked: list[str]) -> None:
    reply = await lab.add(requires=asked)
    assert reply.json["statusId"] < 0 and "Bad requires" in str(reply.message)


async def test_the_trace_and_info_say_what_no_host_has(lab: Api) -> None:
    await lab.publish("autograding_image", labels=("avx512",))
    assert (await spec_of(lab, await lab.add(requires=["avx512"]))).notes == ()
    (note,) = (await spec_of(lab, await lab.add(requires=["gpu", "avx512"]))).notes
    assert "on a host with avx512, gpu now" in note
    info = (await lab.get("/info/test/")).json["info"]
    assert info["unoffered"] == {"autograding_image|+avx512+gpu": 1}


async def test_the_trace_says_when_no_host_has_quiet_cores(lab: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "FRESH_S", 0.0)
    await lab.publish("autograding_image")
    assert "on quiet cores" in (await spec_of(lab, await lab.add(quiet=True))).notes[0]
    assert (await spec_of(lab, await lab.add())).notes == ()
    await lab.publish("autograding_image", quiet_cores=1)
    assert (await spec_of(lab, await lab.add(quiet=True, timeout=9))).notes == ()


async def test_a_job_is_listed_with_its_sizes_and_where_it_runs(lab: Api) -> None:
    await lab.add(vm={"cores": 2, "memory": 256})
    (entry,) = (await lab.get("/jobs/test/0/")).json["jobs"]
    assert [entry["vm"][k] for k in ("cores", "memory", "vmms")] == [2.0, 256, None]
    (claim,) = await lab.queue.claim("host#1", "r", {"autograding_image": 1})
    await lab.queue.start(claim, "machine", "localDocker")
    (entry,) = (await lab.get("/jobs/test/0/")).json["jobs"]
    assert (entry["vm"]["vmms"], entry["vm"]["id"]) == ("localDocker", "machine")


async def test_only_the_needed_fields_are_needed_and_unknown_ones_are_ignored(lab: Api) -> None:
    body = {k: job()[k] for k in ("image", "files", "output_file", "jobName")} | {"instanceType": "t2", "ec2Vmms": True}
    spec = await spec_of(lab, await lab.add_raw(json.dumps(body).encode()))
    assert (spec.callback_url, spec.network) == (None, True)


@pytest.mark.parametrize(("asked", "network"), [(True, False), (False, True), (None, True)])
async def test_the_network_can_be_disabled(lab: Api, asked: bool | None, network: bool) -> None:
    assert (await spec_of(lab, await lab.add(disable_network=asked))).network is network


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"callback_url": ""}, None),
        ({"callback_url": None}, None),
        ({"callback_url": "", "notifyURL": "http://h/n"}, "http://h/n"),
        ({"callback_url": "https://u:p@h.example:3000/a/b?c=d&e=%20#f"}, "https://u:p@h.example:3000/a/b?c=d&e=%20#f"),
        ({"callback_url": "http://[::1]:3000"}, "http://[::1]:3000"),
    ],
)
async def test_a_callback_is_an_absolute_uri_or_none(lab: Api, fields: dict[str, Any], url: str | None) -> None:
    assert (await spec_of(lab, await lab.add(**fields))).callback_url == url


@pytest.mark.parametrize(
    "url",
    [
        *("/x", "ftp://h/x", "http://", "http:///x", "file:///etc/passwd", "javascript:alert(1)"),
        *("http://h/ x", "http://h/<b>", "http://h/%zz", "http://h/é", "http://h/[a]", "http://h/#a#b"),
        *("http://h%zz/", "http://[:]/", "http://[::1", "http://h:x/", "http://h/\r\nX: y", "http://h/" + "x" * 5000),
    ],
)
async def test_another_callback_is_refused(lab: Api, url: str) -> None:
    assert reasons(await lab.add(callback_url=url)) == ["Bad callback_url: expected an absolute http or https URI"]


MAKEFILE = {"localFile": "autograde-Makefile", "destFile": "Makefile"}
HELLO = {"localFile": "hello.sh", "destFile": "hello.sh"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"files": [HELLO]}, ["Missing Makefile in input files."]),
        ({"files": []}, ["Missing Makefile in input files."]),
        ({"files": None}, ["Missing Makefile in input files."]),
        ({"files": [MAKEFILE, MAKEFILE]}, ["More than one Makefile in input files."]),
        ({"files": [MAKEFILE, HELLO, HELLO]}, ["More than one input file has the destFile hello.sh"]),
        ({"image": ""}, ["Missing job.vm.image"]),
        ({"image": None}, ["Missing job.vm.image"]),
        ({"jobName": ""}, ["Missing job.name"]),
        ({"jobName": None}, ["Missing job.name"]),
        ({"output_file": ""}, ["Missing job.outputFile"]),
        ({"output_file": None}, ["Missing job.outputFile"]),
        ({"output_file": "../x"}, ["Bad output_file: not a plain file name"]),
        ({"files": [MAKEFILE, HELLO | {"localFile": "a/b"}]}, ["Bad localFile: not a plain file name"]),
        ({"files": [MAKEFILE, HELLO | {"destFile": "/etc/x"}]}, ["Bad destFile: not a plain file name"]),
        ({"files": [MAKEFILE, HELLO | {"destFile": ""}]}, ["Bad destFile: empty"]),
        ({"files": [MAKEFILE, HELLO | {"destFile": "a\u0000"}]}, ["Bad destFile: control characters"]),
        ({"files": [MAKEFILE, HELLO | {"destFile": "x" * 256}]}, ["Bad destFile: longer than 255 bytes"]),
        ({"files": [MAKEFILE, HELLO | {"localFile": "a"}]}, ["Input file not found: a"]),
        ({"files": [MAKEFILE, HELLO | {"localFile": "output"}]}, ["Input file not found: output"]),
        ({"files": [MAKEFILE] * 1001}, ["Too many input files: at most 1000"]),
        ({"image": "", "files": []}, ["Missing job.vm.image", "Missing Makefile in input files."]),
    ],
)
async def test_a_job_is_rejected_with_every_reason(
    lab: Api, labs: Path, changes: dict[str, Any], expected: list[str]
) -> None:
    assert reasons(await lab.add(**changes)) == expected
    assert pins(labs) == []


async def test_a_job_of_a_lab_that_was_never_opened_is_rejected(api: Api) -> None:
    assert reasons(await api.add("nolab")) == ["Courselab not found"]


@pytest.mark.parametrize("settings", [{"limits": {"disk_bytes": 4 * MIB}}], indirect=True)
async def test_inputs_larger_than_a_jobs_disk_are_rejected(lab: Api, labs: Path, settings: Settings) -> None:
    with (labs / "test-lab" / "hello.sh").open("wb") as file:
        file.truncate(settings.limits.disk_bytes + 1)
    (reason,) = reasons(await lab.add())
    assert reason.startswith("Input files are too large: ")
    assert pins(labs) == []


@pytest.mark.parametrize("image", ["../x", "a b", "a;b", "UPPER/../x", "x" * 300, "é", "-rf", "a:b:c"])
async def test_a_bad_image_name_is_rejected(lab: Api, image: str) -> None:
    assert reasons(await lab.add(image=image))[0].startswith("Bad image")


async def test_an_image_that_no_dispatcher_has_is_rejected_once_one_was_seen(lab: Api) -> None:
    await spec_of(lab, await lab.add(image="nosuch"))
    await lab.publish("autograding_image")
    assert reasons(await lab.add(image="nosuch", timeout=1)) == ["Image not found: nosuch"]
    await spec_of(lab, await lab.add(image="autograding_image:latest"))


async def test_an_image_that_has_just_appeared_is_accepted(lab: Api) -> None:
    await lab.publish("autograding_image")
    await lab.add()
    await lab.publish("autograding_image", "new", install="other")
    await spec_of(lab, await lab.add(image="new"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\r\nAutograder: Success", "a??Autograder: Success"),
        ("</script>|x\u202e_s@e.edu", "</script>|x?_s@e.edu"),
        ("\u001b[31mred", "?[31mred"),
    ],
)
async def test_a_job_name_cannot_break_the_line_it_is_printed_in(lab: Api, name: str, shown: str) -> None:
    assert (await spec_of(lab, await lab.add(jobName=name))).name == shown


async def test_an_endless_job_name_is_rejected(lab: Api) -> None:
    assert reasons(await lab.add(jobName="x" * 2000)) == ["Bad jobName: longer than 1024 characters"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Malformed JSON: "),
        (b"{not json", "Malformed JSON: "),
        (b"[]", "The body: Expected object, got array"),
        (b'"x"', "The body: Expected object, got str"),
        (b"null", "The body: Expected object, got null"),
        (b'{"jobName": "\xff"}', "The body is not valid UTF-8"),
        (b'{"unknown": "\xff"}', "The body is not valid UTF-8"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "Malformed JSON: nested too deeply"),
        (b'{"timeout": "soon"}', "timeout: Expected int | float | null, got str"),
        (b'{"timeout": true}', "timeout: Expected int | float | null, got bool"),
        (b'{"timeout": 1e999}', "timeout: Number out of range"),
        (b'{"timeout": NaN}', "Malformed JSON: "),
        (b'{"max_kb": []}', "max_kb: Expected int | float | null, got array"),
        (b'{"jobName": 5}', "jobName: Expected str | null, got int"),
        (b'{"image": {}}', "image: Expected str | null, got object"),
        (b'{"disable_network": "true"}', "disable_network: Expected bool | null, got str"),
        (b'{"disable_network": 1}', "disable_network: Expected bool | null, got int"),
        (b'{"callback_url": 1}', "callback_url: Expected str | null, got int"),
        (b'{"files": {}}', "files: Expected array | null, got object"),
        (b'{"files": [1]}', "files[0]: Expected object, got int"),
        (b'{"files": [{"localFile": "a"}]}', "files[0]: Object missing required field destFile"),
        (b'{"files": [{"localFile": null, "destFile": "a"}]}', "files[0].localFile: Expected str, got null"),
        (b'{"files": [{"localFile": "a", "destFile": "\\ud800"}]}', "Malformed JSON: "),
    ],
)
async def test_what_is_no_addjob_is_refused_in_words(lab: Api, body: bytes, message: str) -> None:
    reply = await lab.add_raw(body)
    assert reply.json["statusId"] == -1
    assert reply.message.startswith(message)


async def test_a_huge_body_is_refused_with_413_in_tangos_shape(lab: Api) -> None:
    reply = await lab.add_raw(b'{"x": "' + b"x" * 2 * MIB + b'"}')
    assert reply.status == 413
    assert reply.outcome == (-1, "The body is too large: at most 1048576 bytes are accepted")


async def test_a_repeated_request_is_the_same_job(lab: Api, labs: Path) -> None:
    ids = [(await lab.add()).json["jobId"] for _ in range(4)]
    ids += [r.json["jobId"] for r in await asyncio.gather(*(lab.add() for _ in range(4)))]
    assert set(ids) == {1}
    assert len(pins(labs)) == 2


async def test_another_body_or_other_inputs_are_another_job(lab: Api) -> None:
    first = (await lab.add()).json["jobId"]
    assert (await lab.add(timeout=21)).json["jobId"] > first
    await lab.upload("hello.sh", b"echo resubmitted\n")
    assert (await lab.add()).json["jobId"] > first + 1


async def test_an_idempotency_key_decides_instead_of_the_body(lab: Api) -> None:
    async def add(key: str, **changes: Any) -> Any:
        body = json.dumps(job(**changes)).encode()
        return (await lab.post("/addJob/test/lab/", body, f"Idempotency-Key: {key}\r\n")).json["jobId"]

    assert await add("a") == await add("a", timeout=5)
    assert await add("a") != await add("b")


@pytest.mark.parametrize("settings", [{"callbacks": {"min_age_s": 60.0}}], indirect=True)
async def test_the_callback_is_due_only_after_the_answer_was_flushed(lab: Api, settings: Settings) -> None:
    await lab.add()
    await lab.end(b"done")
    async with asyncio.timeout(60):
        while (due := await lab.queue.next_due_s()) is None or due > settings.callbacks.min_age_s:
            await asyncio.sleep(0.02)
    assert due > 0


async def test_a_job_that_no_living_dispatcher_can_run_says_so_in_its_trace(lab: Api) -> None:
    job_id = int((await lab.add()).json["jobId"])
    job = await lab.queue.job(job_id)
    assert job is not None
    assert [line.text for line in job.trace] == [
        "No living dispatcher offers the image now; the job waits until one does",
        f"Added job {job_id} to queue",
    ]


async def test_a_job_that_waits_for_an_image_says_so(lab: Api) -> None:
    waiting = await spec_of(lab, await lab.add())
    await lab.publish("autograding_image")
    served = await spec_of(lab, await lab.add(timeout=21))
    assert (len(waiting.notes), len(served.notes)) == (1, 0)
    assert "waits" in waiting.notes[0]


@pytest.mark.parametrize("name", ["GNUmakefile", "makefile"])
async def test_no_file_takes_the_makefiles_place(lab: Api, name: str) -> None:
    files = [{"localFile": "autograde-Makefile", "destFile": "Makefile"}, {"localFile": "hello.sh", "destFile": name}]
    reply = await lab.add(files=files)
    assert f"{name} would be read instead of the Makefile" in str(reply.message)


@pytest.mark.parametrize("priority", [101, -101, 0.5, 1e300, float("inf")])
async def test_an_absurd_priority_is_refused(lab: Api, priority: float) -> None:
    reply = await lab.add(priority=priority)
    assert reply.json["statusId"] == -1
    assert "riority" in str(reply.message) or "JSON" in str(reply.message)


@pytest.mark.parametrize("key", ["a\tb", "a\nb", "x" * 300])
async def test_an_absurd_limiting_key_is_refused(lab: Api, key: str) -> None:
    reply = await lab.add(limiting_key=key)
    assert "limiting_key" in str(reply.message)


async def test_a_job_has_the_submitter_of_its_name_or_the_key_that_was_sent(lab: Api) -> None:
    await lab.add(output_file="1.txt")
    await lab.add(output_file="2.txt", limiting_key="team/7", priority=5)
    await lab.add(output_file="3.txt", jobName="course_lab_regrade_1_student@example.edu")
    found = [(j.spec.submitter, j.spec.priority) for j in await lab.queue.live(10)]
    assert sorted(found) == [("student@example.edu", -10), ("student@example.edu", 0), ("team/7", 5)]
