"""Which instance a job gets: what the settings name, and what the job itself asks for, as AWS knows it."""

from __future__ import annotations

import asyncio

from msgspec import structs

from ...config import Ec2, HostKeys
from ...errors import ImageNotFound, Unsuitable
from ...machine import CloudChoice, Machine, MachineSpec
from ..ssh import new_key
from . import instances, user_data
from .accounts import OWN, Accounts
from .client import Account
from .instances import Launch, Size


class Wishes:
    """Of one installation, in its own account and in those that jobs bring."""

    def __init__(self, settings: Ec2, install: str, accounts: Accounts) -> None:
        self._settings = settings
        self._install = install
        self._accounts = accounts
        self._sizes: dict[str, Size] = {}
        self._own_data = b""

    async def check(self, account: Account) -> None:
        """Reads the operator's user data, and asks AWS for what the settings name.

        Raises Unsuitable, VmmsUnavailable.
        """
        settings = self._settings
        self._own_data = await asyncio.to_thread(user_data.read, settings)
        self._sizes = await instances.sizes(account, settings.types)
        if settings.images:
            await account.all("describe_images", "Images", ImageIds=list(settings.images.values()))
        if settings.security_groups:
            groups = list(settings.security_groups)
            await account.all("describe_security_groups", "SecurityGroups", GroupIds=groups)
        if settings.subnets:
            await account.all("describe_subnets", "Subnets", SubnetIds=list(settings.subnets))
        if settings.key_name:
            await account.all("describe_key_pairs", "KeyPairs", KeyNames=[settings.key_name])

    async def amis(self, account: Account) -> dict[str, str]:
        """Image name → AMI id."""
        found = await account.all(
            "describe_images", "Images", Owners=["self"], Filters=[{"Name": "tag-key", "Values": ["Name"]}]
        )
        tagged = {tag["Value"]: one["ImageId"] for one in found for tag in one["Tags"] if tag["Key"] == "Name"}
        named = {**tagged, **self._settings.images}
        return {name.removesuffix(":latest"): ami for name, ami in named.items() if name}

    async def launch(self, machine: Machine, choice: CloudChoice, public: str) -> Launch:
        """What is asked for; `public` is the key that lets us in. Raises Unsuitable, ImageNotFound, VmmsUnavailable."""
        spec, account = machine.spec, await self._accounts.get(choice.account)
        ami = choice.image or (await self.amis(account)).get(spec.image, "")
        if not ami:
            raise ImageNotFound(f"image {spec.image}: neither in ec2.images nor an AMI with this tag Name")
        group = choice.security_group
        if group and not group.startswith("sg-"):
            group = await self._group(account, group)
        elsewhere = choice.account != OWN  # where what the settings name is not to be found
        host_key = new_key() if self._settings.host_keys is HostKeys.USER_DATA else None
        tags = {"Name": machine.id, **self._settings.tags}
        return Launch(
            settings=structs.replace(self._settings, subnets=()) if elsewhere else self._settings,
            machine=machine,
            ami=ami,
            types=(choice.machine_type,) if choice.machine_type else self._types(spec),
            key_name=await self._accounts.key_pair(choice.account, public),
            groups=(group,) if group else () if elsewhere else self._settings.security_groups,
            tags=tags | instances.tags_of(self._install, machine, host_key[1] if host_key else ""),
            # In an account that a job brought its owner could read the operator's part.
            user_data=user_data.combined(self._settings, b"" if elsewhere else self._own_data, host_key),
        )

    async def _group(self, account: Account, name: str) -> str:
        """The id of a security group that a job names; Autolab's users know them by name."""
        filters = [{"Name": "group-name", "Values": [name]}]
        found = await account.all("describe_security_groups", "SecurityGroups", Filters=filters)
        if not found:
            raise Unsuitable(f"addJob's security_group: there is none with the name {name}")
        return str(found[0]["GroupId"])

    def _types(self, spec: MachineSpec) -> tuple[str, ...]:
        fitting = tuple(size.name for size in self._sizes.values() if size.holds(spec))
        if not fitting:
            need = f"{spec.cores:g} cores and {spec.memory_bytes >> 20} MiB"
            raise Unsuitable(f"ec2.types: none of {', '.join(self._sizes)} has {need}")
        return fitting


def in_the_jobs_words(said: str, choice: CloudChoice) -> str:
    """Blames what the job chose, and not the settings, for what is not there."""
    chosen = {"ec2.images": ("ami", choice.image), "ec2.types": ("instanceType", choice.machine_type)}
    chosen |= {"ec2.security_groups": ("security_group", choice.security_group)}
    for setting, (field, value) in chosen.items():
        if value:
            said = said.replace(setting, f"addJob's {field}")
    return said
