"""A cloud for tests: moto answers the API, a proxy before it adds AWS's manners and faults, and each running
instance is a real sshd on the address that the API says (support/vm.py)."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from aiobotocore.session import get_session
from aiohttp import ClientSession, web

from support.engine import IMAGE
from support.places import own_network, own_port
from support.vm import SshVm
from tango_async.config import Dispatcher, Ec2, Limits, Settings

REGION = "us-east-1"
KEY, OTHER_KEY = "AKIAOWN", "AKIAJOB"
"""Access keys of two accounts."""
SECRET = "the-secret-part"
ACCOUNT = {"region_name": REGION, "aws_secret_access_key": SECRET}
NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
START_S = 60.0
VALIDATE = ("MOTO_ENABLE_AMI_VALIDATION", "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "MOTO_ENABLE_KEYPAIR_VALIDATION")


LIVING = ("pending", "running", "stopping", "stopped")
EVERY = "*"
LOST = "lost"
NOTICE = "<item><instanceId>{instance}</instanceId><status><code>marked-for-termination</code></status></item>"
NONE_LISTED = f'<DescribeInstancesResponse xmlns="{NAMESPACE}"><reservationSet/></DescribeInstancesResponse>'
"""What a listing says that lags behind."""
TAKEN_BACK = "<stateReason><code>Server.SpotInstanceTermination</code><message>taken</message></stateReason>"


def settings_on(cloud: Cloud, state_dir: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "region": REGION, "endpoint": cloud.url, "access_key_id": KEY, "access_key": SECRET, "user": "root",
        "subnets": (cloud.subnets[KEY],), "boot_s": 20.0, "lost_s": 5.0,
    }  # fmt: skip
    return Settings(
        ec2=Ec2(**(values | changes)),  # type: ignore[arg-type]
        limits=Limits(max_timeout_s=600),
        dispatcher=Dispatcher(machine_wait_s=100.0, state_dir=state_dir),
    )


@contextmanager
def moto() -> Iterator[str]:
    """A moto server of its own; its URL."""
    port = own_port()
    program = str(Path(sys.executable).with_name("moto_server"))
    environment = os.environ | dict.fromkeys(VALIDATE, "1") | {"MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", program, "-H", "127.0.0.1", "-p", str(port)], env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as server:  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + START_S
            while not _answers(url):
                assert server.poll() is None and time.monotonic() < end, "moto_server does not answer"
                time.sleep(0.05)
            yield url
        finally:
            server.kill()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/moto-api/", timeout=5):
        return True
    return False


@dataclass
class Fault:
    """What the API answers instead, so many times, to calls of one action whose form holds some values."""

    code: str
    times: int = 1
    status: int = 400
    holding: dict[str, str] = field(default_factory=dict)


class Cloud:
    """The API as a driver sees it, and the instances behind it."""

    def __init__(self, motos: dict[str, str]) -> None:
        self._motos = motos
        self.url = ""
        self.faults: dict[str, list[Fault]] = {}
        """By action; `EVERY` is any."""
        self.slow_answers: dict[str, float] = {}
        """Action, or `EVERY` → seconds between what is done and the answer; who takes it out is answered at once."""
        self.answers: dict[str, str] = {}
        """Action → the whole XML of its answer."""
        self.calls: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        """Of those that were passed on."""
        self.vms: dict[str, SshVm] = {}
        self.away = False
        """True: whoever calls is cut off."""
        self.away_for: set[str] = set()
        """… and whoever calls with one of these access keys."""
        self.look_s = 0.05
        """Between two looks of the instances at what the API says."""
        self.shared: dict[Path, str] = {}
        """Files of this host, and where instances see them."""
        self.boots = True
        """False: instances run, and nobody is at their address."""
        self.mute_next = 0
        """So it is with so many of those that are launched next."""
        self.mute: set[str] = set()
        self.noticed: set[str] = set()
        self.taken_back: set[str] = set()
        self.lies = False
        """True: another host than the instance is at its address."""
        self.subnets: dict[str, str] = {}
        """Access key → the subnet of its account."""
        self._keys: dict[str, str] = {}
        self._tokens: dict[str, web.Response] = {}
        self.running: dict[str, tuple[str, dict[str, Any]]] = {}
        """Instance → its account and what the API said of it when it was last looked at."""
        self._accounts: dict[str, str] = {}
        """Of every instance that was ever seen to run: one may end between the choice of it and what is done to it."""
        self._ended: set[str] = set()
        self.clients: dict[str, Any] = {}

    def fail(self, action: str, code: str, times: int = 1, *, status: int = 400, **holding: str) -> Fault:
        fault = Fault(code, times, status, holding)
        self.faults.setdefault(action, []).append(fault)
        return fault

    def lose(self, action: str) -> None:
        """Does what is asked once, and says that it failed."""
        self.fail(action, LOST, status=500)

    def reclaim(self, instance: str) -> None:
        """Gives notice: the instance will be taken back."""
        self.noticed.add(instance)
        items = "".join(NOTICE.format(instance=one) for one in sorted(self.noticed))
        self.answers["DescribeSpotInstanceRequests"] = (
            f'<DescribeSpotInstanceRequestsResponse xmlns="{NAMESPACE}"><spotInstanceRequestSet>{items}'
            "</spotInstanceRequestSet></DescribeSpotInstanceRequestsResponse>"
        )

    async def take_back(self, instance: str) -> None:
        """What AWS does two minutes after it gave notice; moto cannot tell why an instance ended."""
        self.taken_back.add(instance)
        await self.end(instance)

    async def end(self, instance: str) -> None:
        """What whoever has the account may do at any time."""
        key = self._accounts.get(instance, KEY)
        await self.clients[key].terminate_instances(InstanceIds=[instance])

    # -- the proxy ---------------------------------------------------------------------------------

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        action = form.get("Action", "")
        self.calls[action] += 1
        key = request.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
        if self.away or key in self.away_for:
            assert request.transport is not None
            request.transport.abort()
            return _error("Unavailable", 503)
        if key not in self._motos:
            return _error("AuthFailure", 401)
        faults = [*self.faults.get(action, ()), *self.faults.get(EVERY, ())]
        fault = next((f for f in faults if f.times and f.holding.items() <= form.items()), None)
        if fault is not None:
            fault.times -= 1
            if fault.code != LOST:
                return _error(fault.code, fault.status)
        if action == "GetConsoleOutput":
            return self._console(form["InstanceId"])
        if action in self.answers:
            return web.Response(text=self.answers[action], content_type="text/xml")
        if action == "ImportKeyPair":
            self._keys[form["KeyName"]] = base64.b64decode(form["PublicKeyMaterial"]).decode()
        token = form.get("ClientToken", "") if action == "RunInstances" else ""
        if token in self._tokens:
            return _copied(self._tokens[token])
        if action == "RunInstances" and not any(name.endswith("SubnetId") for name in form):
            body += b"&SubnetId=" + self.subnets[key].encode()  # as in an account with a default one
        if action == "DeleteKeyPair" and "KeyPairId" in form:
            body += b"&KeyName=" + (await self._key_named(key, form["KeyPairId"])).encode()  # moto knows names only
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("content-length", "transfer-encoding")}
        async with (
            ClientSession() as session,
            session.post(self._motos[key] + "/", data=body, headers=headers) as real,
        ):
            said = self._reasons(await real.text()) if action == "DescribeInstances" else await real.text()
            answered = web.Response(text=said, status=real.status, content_type="text/xml")
        if token and answered.status == 200:
            self._tokens[token] = _copied(answered)
        await self._wait(action)
        self.answered[action] += 1
        return answered if fault is None else _error("InternalError", 500)

    async def _wait(self, action: str) -> None:
        """For as long as `slow_answers` says all the while."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() - begun < self.slow_answers.get(action, self.slow_answers.get(EVERY, 0)):
            await asyncio.sleep(0.01)

    async def _key_named(self, account: str, pair_id: str) -> str:
        """Empty if there is no such key pair."""
        pairs = (await self.clients[account].describe_key_pairs())["KeyPairs"]
        return next((pair["KeyName"] for pair in pairs if pair["KeyPairId"] == pair_id), "")

    def _reasons(self, described: str) -> str:
        for instance in self.taken_back:
            before, found, rest = described.partition(f"<instanceId>{instance}")
            if found:
                before, _, reason = before.rpartition("<stateReason>")
                described = before + TAKEN_BACK + reason.partition("</stateReason>")[2] + found + rest
        return described

    def _console(self, instance: str) -> web.Response:
        vm = self.vms.get(instance)
        said = f"[ 9.1] booted\r\n{vm.public_key} root@host\r\n" if vm else ""
        output = base64.b64encode(said.encode()).decode()
        return web.Response(
            text=f'<GetConsoleOutputResponse xmlns="{NAMESPACE}"><instanceId>{instance}</instanceId>'
            f"<output>{output}</output></GetConsoleOutputResponse>",
            content_type="text/xml",
        )

    # -- what runs ---------------------------------------------------------------------------------

    async def instances(self, key: str = KEY, *states: str) -> list[dict[str, Any]]:
        """All, or those in some states."""
        filters = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        found = await self.clients[key].describe_instances(Filters=filters)
        return [one for reservation in found["Reservations"] for one in reservation["Instances"]]

    async def living(self) -> list[dict[str, Any]]:
        return [one for key in self.clients for one in await self.instances(key, *LIVING)]

    async def reconcile(self) -> None:
        """Lets the instances be what the API says, and the other way round when one ends by itself."""
        while True:
            self.running = {
                one["InstanceId"]: (key, one) for key in self.clients for one in await self.instances(key, "running")
            }
            self._accounts |= {name: key for name, (key, _) in self.running.items()}
            for name, (key, one) in self.running.items():
                await self._be(name, one, key)
            for name in self.vms.keys() - self.running.keys() - self._ended:
                await asyncio.to_thread(self.vms[name].kill)
                self._ended.add(name)
            await asyncio.sleep(self.look_s)

    async def _be(self, name: str, one: dict[str, Any], key: str) -> None:
        if name not in self.vms:
            if not self.boots or name in self.mute:
                return
            if self.mute_next:
                self.mute_next -= 1
                self.mute.add(name)
                return
            data = await self.clients[key].describe_instance_attribute(InstanceId=name, Attribute="userData")
            text = "" if self.lies else base64.b64decode((data.get("UserData") or {}).get("Value", "")).decode()
            self.vms[name] = SshVm(
                one["PrivateIpAddress"], self._keys[one["KeyName"]], text, hostname=name, shared=self.shared
            )
            self.vms[name].start()
        elif not self.vms[name].alive:
            await self.clients[key].terminate_instances(InstanceIds=[name])


@asynccontextmanager
async def cloud_on(motos: dict[str, str]) -> AsyncIterator[Cloud]:
    """A cloud with one VPC of loopback addresses and one AMI in each account."""
    cloud = Cloud(motos)
    application = web.Application(client_max_size=1 << 24)
    application.router.add_post("/", cloud.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cloud.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    session = get_session()
    try:
        for number, (key, url) in enumerate(motos.items()):
            async with ClientSession() as http:
                await (await http.post(f"{url}/moto-api/reset")).read()
            client = session.create_client("ec2", endpoint_url=url, aws_access_key_id=key, **ACCOUNT)
            cloud.clients[key] = await client.__aenter__()
            cloud.subnets[key] = await _furnish(cloud.clients[key], number)
        reconciling = asyncio.create_task(cloud.reconcile())
        try:
            yield cloud
        finally:
            reconciling.cancel()
            with suppress(asyncio.CancelledError):
                await reconciling
    finally:
        for vm in cloud.vms.values():
            vm.kill()
        for client in cloud.clients.values():
            await client.__aexit__(None, None, None)
        cloud.slow_answers.clear()
        await runner.cleanup()


async def _furnish(client: Any, number: int) -> str:
    """Answers the subnet's id."""
    network = f"127.{own_network()}"
    vpc = (await client.create_vpc(CidrBlock=f"{network}.0.0/16"))["Vpc"]["VpcId"]
    subnet = await client.create_subnet(VpcId=vpc, CidrBlock=f"{network}.{16 * number}.0/20")
    ami: str = (await client.register_image(Name=f"image-{number}"))["ImageId"]
    await client.create_tags(Resources=[ami], Tags=[{"Key": "Name", "Value": IMAGE}])
    return str(subnet["Subnet"]["SubnetId"])


def _error(code: str, status: int) -> web.Response:
    text = f"<Response><Errors><Error><Code>{code}</Code><Message>of the test</Message></Error></Errors></Response>"
    return web.Response(text=text, status=status, content_type="text/xml")


def _copied(answer: web.Response) -> web.Response:
    return web.Response(body=answer.body, status=answer.status, content_type="text/xml")
