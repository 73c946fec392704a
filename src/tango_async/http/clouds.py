"""What an addJob asks of a cloud: an image, a machine type, a security group, an account of its own.

The account's secret goes to the queue by itself, and is in no other record.
"""

from __future__ import annotations

import re

from ..machine import CloudChoice, Credentials
from .requests import AddJob

_CHOICES = {
    "ami": (re.compile(r"ami-[0-9a-f]{8,17}"), "an id such as ami-0123456789abcdef0"),
    "instanceType": (re.compile(r"[a-z0-9][a-z0-9.-]{1,39}"), "a type such as t3.small"),
    "security_group": (re.compile(r"[\w .:/()#,@\[\]+=&;{}!$*-]{1,255}", re.ASCII), "a security group's id or name"),
}
_KEY_ID = re.compile(r"[\w-]{4,128}", re.ASCII)
_SECRET = re.compile(r"[!-~]{1,256}")


def choice(asked: AddJob, reasons: list[str]) -> CloudChoice | None:
    """None if it asks for nothing. Adds to the reasons to refuse it, without repeating what is secret."""
    given = {"ami": asked.ami, "instanceType": asked.instance_type, "security_group": asked.security_group}
    for name, value in given.items():
        pattern, expected = _CHOICES[name]
        if value and not pattern.fullmatch(value):
            reasons.append(f"Bad {name}: expected {expected}")
    if bool(asked.access_key_id) != bool(asked.access_key):
        reasons.append("Missing accessKeyId or accessKey: one is of no use without the other")
    elif asked.access_key_id and not (
        _KEY_ID.fullmatch(asked.access_key_id) and _SECRET.fullmatch(asked.access_key or "")
    ):
        reasons.append("Bad accessKeyId or accessKey: not such as AWS gives")
    own = credentials(asked)
    if own is None and not any(given.values()):
        return None
    return CloudChoice(
        image=asked.ami or "",
        machine_type=asked.instance_type or "",
        security_group=asked.security_group or "",
        account=own.account if own else "",
    )


def credentials(asked: AddJob) -> Credentials | None:
    """The job's own account, if it brings one."""
    if not asked.access_key_id or not asked.access_key:
        return None
    return Credentials(key_id=asked.access_key_id, secret=asked.access_key)
