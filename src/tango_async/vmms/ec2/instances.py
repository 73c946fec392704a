"""What an instance is made of: its tags, which say all that a later dispatcher needs, and its launch.

Tags are given with the launch itself, so that no instance is ever without them, whatever becomes of
the answer; the machine's id is the launch's client token, so that a repeated request makes no second one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec

from ...config import Ec2
from ...errors import NoCapacity, Unsuitable
from ...machine import Machine, MachineSpec
from .client import Account

log = logging.getLogger(__name__)

INSTALL = "tango:install"
MACHINE = "tango:machine"
OWNER = "tango:owner"
NONCE = "tango:nonce"
HOST_KEY = "tango:host-key"
KEPT = "tango:kept"
SPEC = "tango:spec"
"""… with a number behind it: a tag holds 256 characters, and a spec may be longer."""

_TAG_CHARS = 250
GUARD = r"""
shutdown -h "+$1" </dev/null >/dev/null 2>&1 || { echo "no shutdown" >&2; exit 1; }
ip route replace prohibit 169.254.169.254/32
"""
"""Ends the instance after so many minutes, and shuts the way to its user data and credentials, which a job could
read there. Run by the dispatcher, before the first job; the first half by cloud-init, too, for an instance that no
dispatcher ever reaches."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as AWS describes it, and whose it is."""

    id: str
    machine: Machine
    account: str
    """"" is the settings' own; else the job's (CloudChoice.account)."""
    state: str
    address: str
    host_key: str
    spot: bool
    reason: str = ""
    """Why it ended, in AWS's words."""

    @property
    def gone(self) -> bool:
        return self.state in ("shutting-down", "terminated")

    @property
    def taken_back(self) -> bool:
        return "Spot" in self.reason


def new_id() -> str:
    """Of a machine."""
    return f"tango-{uuid4().hex[:16]}"


def new_nonce() -> str:
    return secrets.token_hex(16)


def tags_of(install: str, machine: Machine, host_key: str) -> dict[str, str]:
    packed = msgspec.json.encode(machine.spec).decode()
    parts = [packed[at : at + _TAG_CHARS] for at in range(0, len(packed), _TAG_CHARS)]
    return {
        INSTALL: install, MACHINE: machine.id, OWNER: machine.owner, NONCE: machine.nonce, HOST_KEY: host_key,
        **{f"{SPEC}{n}": part for n, part in enumerate(parts)},
    }  # fmt: skip


def instance_of(found: Mapping[str, Any], account: str, *, public: bool) -> Instance | None:
    """None if its tags are not such as we write them."""
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
    packed = "".join(tags.get(f"{SPEC}{n}", "") for n in range(len(tags)))
    try:
        spec = msgspec.json.decode(packed, type=MachineSpec)
        machine = Machine(id=tags[MACHINE], spec=spec, nonce=tags[NONCE], owner=tags[OWNER])
    except (msgspec.DecodeError, KeyError):
        log.warning("instance %s has our tag, but not all of them; it is left alone", found["InstanceId"])
        return None
    reason = found.get("StateReason", {})
    return Instance(
        id=found["InstanceId"],
        machine=machine,
        account=account,
        state=found["State"]["Name"],
        address=found.get("PublicIpAddress" if public else "PrivateIpAddress", ""),
        host_key=tags.get(HOST_KEY, ""),
        spot=found.get("InstanceLifecycle") == "spot",
        reason=f"{reason.get('Code', '')} {reason.get('Message', '')}".strip(),
    )


@dataclass(frozen=True, slots=True)
class Size:
    """An instance type."""

    name: str
    cores: int
    memory_bytes: int

    def holds(self, spec: MachineSpec) -> bool:
        return self.cores >= spec.cores and self.memory_bytes >= spec.memory_bytes


async def sizes(account: Account, names: Sequence[str]) -> dict[str, Size]:
    """The types of these names, as AWS knows them. Raises Unsuitable."""
    found = await account.all("describe_instance_types", "InstanceTypes", InstanceTypes=list(names))
    known = {
        one["InstanceType"]: Size(
            one["InstanceType"], one["VCpuInfo"]["DefaultVCpus"], one["MemoryInfo"]["SizeInMiB"] << 20
        )
        for one in found
    }
    if missing := [name for name in names if name not in known]:
        raise Unsuitable(f"ec2.types: AWS knows no instance type {', '.join(missing)}")
    return {name: known[name] for name in names}


@dataclass(frozen=True, slots=True)
class Launch:
    """One machine's launch."""

    settings: Ec2
    machine: Machine
    ami: str
    types: tuple[str, ...]
    """In the order in which they are tried."""
    key_name: str
    groups: tuple[str, ...]
    tags: Mapping[str, str]
    user_data: bytes = field(repr=False)

    async def run(self, account: Account, abandon: Callable[[Awaitable[str]], None]) -> str:
        """Answers the instance's id. Raises NoCapacity when none of the ways has room, Unsuitable, VmmsUnavailable.

        A cancel breaks off no request, since what it has made would then be nobody's: `abandon` gets its answer.
        """
        refused: list[NoCapacity] = []
        for number, (spot, machine_type, subnet) in enumerate(self._ways()):
            request = self._request(machine_type, subnet, spot=spot)
            request["ClientToken"] = f"{self.machine.id}-{number}"
            asked = asyncio.ensure_future(self._asked(account, request))
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:
                abandon(asked)
                raise
            except NoCapacity as e:
                log.info("machine %s: %s", self.machine.id, e)
                refused.append(e)
        raise NoCapacity(f"AWS gives no instance of {', '.join(self.types)}: {refused[-1]}")

    @staticmethod
    async def _asked(account: Account, request: Mapping[str, Any]) -> str:
        answer = await account.call("run_instances", **request)
        return str(answer["Instances"][0]["InstanceId"])

    def _ways(self) -> Iterator[tuple[bool, str, str]]:
        for spot in (True, False) if self.settings.spot else (False,):
            for machine_type in self.types:
                for subnet in self.settings.subnets or ("",):
                    yield spot, machine_type, subnet

    def _request(self, machine_type: str, subnet: str, *, spot: bool) -> dict[str, Any]:
        tags = [{"Key": key, "Value": value} for key, value in self.tags.items()]
        request: dict[str, Any] = {
            "ImageId": self.ami,
            "InstanceType": machine_type,
            "MinCount": 1,
            "MaxCount": 1,
            "KeyName": self.key_name,
            "UserData": self.user_data,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": tags},
                {
                    "ResourceType": "volume",
                    "Tags": [t for t in tags if t["Key"] == INSTALL or t["Key"] in self.settings.tags],
                },
            ],
        }
        if self.settings.public_address:
            interface: dict[str, Any] = {"DeviceIndex": 0, "AssociatePublicIpAddress": True}
            interface |= {"SubnetId": subnet} if subnet else {}
            interface |= {"Groups": list(self.groups)} if self.groups else {}
            request["NetworkInterfaces"] = [interface]
        else:
            request |= {"SubnetId": subnet} if subnet else {}
            request |= {"SecurityGroupIds": list(self.groups)} if self.groups else {}
        if spot:
            request["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
            }
        return request
