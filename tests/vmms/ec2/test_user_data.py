"""The operator's own is there, whatever its format, and takes nothing away of ours."""

from __future__ import annotations

import base64
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest

from support.ec2 import KEY, OTHER_KEY, SECRET, Cloud, settings_on
from tango_async.config import HostKeys
from tango_async.errors import (
    VmmsUnavailable,
)
from tango_async.machine import CloudChoice, Credentials
from tango_async.vmms.ec2.driver import Ec2Ssh
from vmms.ec2.conftest import backend_on

SCRIPT = "#!/bin/sh\nmkdir -p /run/own && printf 'caf\u00e9\\n' >/run/own/script\n"
CONFIG = '#cloud-config\n{"runcmd": ["touch /run/config"], "ssh_keys": {"ed25519_private": "theirs"}}'


def boundary(*parts: str) -> str:
    message = MIMEMultipart()
    for part in parts:
        message.attach(MIMEText(part, "plain"))
    return message.as_string()


@pytest.mark.parametrize(
    ("own", "files"),
    [(SCRIPT, "/run/own/script"), (CONFIG, "/run/config"), ("", "/run/own/script /run/config")],
    ids=["script", "config", "message"],
)
async def test_it_arrives_beside_ours(cloud: Cloud, tmp_path: Path, own: str, files: str) -> None:
    (tmp_path / "data").write_text(own or boundary(SCRIPT, CONFIG))
    async with backend_on(cloud, tmp_path, user_data=tmp_path / "data") as backend, backend.machine():
        (one,) = await cloud.living()  # which our host key let in
        vm = cloud.vms[one["InstanceId"]]
        assert vm.sh(f"rm /run/shutdown; cat {files}") == ("café\n" if "script" in files else "")
        assert "shutdown -h +360" in vm.user_data


async def test_it_goes_alone_where_cloud_init_does_not_know_it(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "data").write_text('{"ignition": {}}')
    data = tmp_path / "data"
    async with backend_on(cloud, tmp_path, user_data=data, host_keys=HostKeys.CONSOLE) as backend:
        machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
        (one,) = await cloud.living()
        found = await cloud.clients[KEY].describe_instance_attribute(InstanceId=one["InstanceId"], Attribute="userData")
        assert base64.b64decode(found["UserData"]["Value"]) == data.read_bytes()
        await backend.vmms.destroy_vm(machine)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (None, "No such file"),
        (b"#!/bin/sh\n" + b"#" * 16000, "1[67][0-9]{3} bytes with our part; AWS takes 16384 at most"),
        (b"apt install", "cloud-init knows no such format"),
    ],
)
async def test_what_is_wrong_with_it_is_said_at_the_start(
    cloud: Cloud, tmp_path: Path, own: bytes | None, said: str
) -> None:
    if own is not None:
        (tmp_path / "data").write_bytes(own)
    vmms = Ec2Ssh(settings_on(cloud, tmp_path, user_data=tmp_path / "data"), "install")
    with pytest.raises(VmmsUnavailable, match=rf"ec2\.user_data: .*/data: {said}") as error:
        await vmms.open()
    assert "apt install" not in str(error.value)


async def test_a_jobs_own_account_does_not_get_it(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "data").write_text(SCRIPT)
    theirs = Credentials(key_id=OTHER_KEY, secret=SECRET)
    async with backend_on(cloud, tmp_path, user_data=tmp_path / "data", subnets=()) as backend:
        await backend.vmms.know(theirs)
        async with backend.machine(cloud=CloudChoice(account=theirs.account)):
            (one,) = await cloud.living()
            assert "/run/own" not in cloud.vms[one["InstanceId"]].user_data
