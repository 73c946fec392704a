"""One submission's way through the API, as Autolab drives it."""

from __future__ import annotations

from support.api import Api

FEEDBACK = (
    b"Autograder [Sun Nov 22 00:14:48 2026]: Received job ok:1\n"
    b"Autograder [Sun Nov 22 00:14:50 2026]: Success: Autodriver returned normally\n"
    b"Autograder [Sun Nov 22 00:14:50 2026]: Here is the output from the autograder:\n---\n"
    b'Autodriver: Job exited with status 0\n\xff\xfe\n{"scores": {"a": 1}}\n'
)


async def test_a_submission_is_opened_uploaded_added_and_polled(api: Api) -> None:
    assert (await api.get("/open/test/lab/")).json == {"statusId": 0, "statusMsg": "Created directory", "files": {}}
    assert (await api.upload("autograde-Makefile", b"m")).outcome == (0, "Uploaded file")
    assert (await api.upload("hello.sh", b"h")).outcome == (0, "Uploaded file")
    added = (await api.add()).json
    assert added == {"statusId": 0, "statusMsg": "Job added", "jobId": 1}
    path = "/poll/test/lab/student%40example.edu_1_lab_autograde.txt"
    assert (await api.get(path)).outcome == (-1, "Output file not found")
    await api.end(FEEDBACK)
    for spelling in (path, path + "/"):
        reply = await api.get(spelling)
        assert (reply.status, reply.type, reply.body) == (200, "application/octet-stream", FEEDBACK)
