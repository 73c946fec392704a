"""addJob for a cloud: what is chosen reaches the job, what is secret does not."""

from __future__ import annotations

import pytest

from support.api import Api
from support.jobs import claim_one
from tango_async.machine import CloudChoice, Credentials
from tango_async.model import Verdict
from tango_async.queue.redis import Answer

KEY_ID, SECRET = "AKIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.fixture
async def lab(api: Api) -> Api:
    await api.ready_lab()
    return api


async def stored(api: Api) -> bytes:
    """Everything that Redis holds."""
    keys = await api.queue._command("KEYS", f"{api.settings.queue.prefix}*")
    return b"".join([await api.queue._command("DUMP", key.decode()) for key in keys])


async def test_empty_fields_are_as_if_they_were_not_there(lab: Api) -> None:
    """Autolab sends them with every job, whether it has EC2 or not."""
    reply = await lab.add(accessKeyId="", accessKey="", ec2Vmms=False, ami="", instanceType="", security_group="")
    record = await lab.queue.job(reply.json["jobId"])
    assert record is not None and record.spec.cloud is None


async def test_what_is_chosen_reaches_the_job_and_the_secret_only_its_holder(lab: Api) -> None:
    own = Credentials(key_id=KEY_ID, secret=SECRET)
    chosen = {"ami": "ami-0123456789abcdef0", "instanceType": "t3.large", "security_group": "my group"}
    await lab.add(accessKeyId=KEY_ID, accessKey=SECRET, ec2Vmms=True, **chosen)
    claim = await claim_one(lab.queue)
    assert claim is not None
    assert claim.spec.cloud == CloudChoice(
        image="ami-0123456789abcdef0", machine_type="t3.large", security_group="my group", account=own.account
    )
    assert SECRET not in repr(claim) and SECRET not in repr(own)
    assert await lab.queue.credentials(claim) == own
    assert SECRET.encode() not in (await lab.get("/jobs/test/0/")).body
    await lab.queue.retry(claim, "a fault")
    assert await lab.queue.credentials(claim) is None, "whoever lost the job may not have them"
    again = await claim_one(lab.queue)
    assert again is not None and await lab.queue.credentials(again) == own
    assert await lab.queue.end(again, Verdict.SUCCESS, "text", "ref") is Answer.OK
    assert SECRET.encode() not in await stored(lab)


async def test_a_cancelled_jobs_secret_goes_with_it(lab: Api) -> None:
    reply = await lab.add(accessKeyId=KEY_ID, accessKey=SECRET)
    assert SECRET.encode() in await stored(lab)
    await lab.queue.cancel(reply.json["jobId"])
    assert SECRET.encode() not in await stored(lab)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"accessKeyId": KEY_ID}, "Missing accessKeyId or accessKey"),
        ({"accessKey": SECRET}, "Missing accessKeyId or accessKey"),
        ({"accessKeyId": KEY_ID, "accessKey": "two\nlines"}, "Bad accessKeyId or accessKey"),
        ({"ami": "ami-1; rm -rf /"}, "Bad ami"),
        ({"instanceType": "T3 small"}, "Bad instanceType"),
        ({"security_group": "\x00"}, "Bad security_group"),
    ],
)
async def test_what_cannot_be_is_refused_without_repeating_it(lab: Api, fields: dict[str, str], said: str) -> None:
    reply = await lab.add(**fields)
    assert reply.json["statusId"] == -1 and said in reply.message[0]
    assert SECRET not in str(reply.message) and "rm -rf" not in str(reply.message)
