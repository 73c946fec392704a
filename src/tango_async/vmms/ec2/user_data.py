"""An instance's user data: what we need there ourselves, and the operator's own.

Both go as one MIME message, which is how cloud-init takes several. It merges them in their order, and a later part's
value takes the place of an earlier one's: so the host key is the last part. The end of the instance is a script of its
own and the first one, since a list of commands in one part would replace that in another, and a script that
hangs holds up those behind it.
"""

from __future__ import annotations

import json
from email import message_from_bytes
from email.encoders import encode_7or8bit, encode_base64
from email.message import Message
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

from ...config import Ec2, HostKeys
from ...errors import VmmsUnavailable
from ..ssh import new_key

MOST_BYTES = 16 * 1024
"""AWS takes no more, before base64."""

GZIP = b"\x1f\x8b"


def read(settings: Ec2) -> bytes:
    """The operator's part; b"" if there is none. Raises VmmsUnavailable if there is something wrong with it."""
    if settings.user_data is None:
        return b""
    name = f"ec2.user_data: {settings.user_data}"
    try:
        own = settings.user_data.read_bytes()
    except OSError as e:
        raise VmmsUnavailable(f"{name}: {e.strerror}") from e
    if settings.host_keys is HostKeys.USER_DATA and own and not _is_for_cloud_init(own):
        said = 'cloud-init knows no such format, and ec2.host_keys = "user-data" needs it'
        raise VmmsUnavailable(f"{name}: {said}; the first line tells it, as #cloud-config or #!/bin/sh")
    size = len(combined(settings, own, new_key() if settings.host_keys is HostKeys.USER_DATA else None))
    if size > MOST_BYTES:
        raise VmmsUnavailable(f"{name}: {size} bytes with our part; AWS takes {MOST_BYTES} at most")
    return own


def combined(settings: Ec2, own: bytes, host_key: tuple[str, str] | None) -> bytes:
    """The user data of one instance, with the operator's part and a host key, private and public."""
    config: dict[str, Any] = {}
    if host_key is not None:
        config["ssh_deletekeys"] = True
        config["ssh_keys"] = {"ed25519_private": host_key[0], "ed25519_public": host_key[1]}
    end = f"shutdown -h +{settings.max_life_minutes}"
    if not own:
        return _cloud_config(config | {"runcmd": [end]}).encode()
    if not _is_for_cloud_init(own):
        return own
    message = MIMEMultipart()
    message.attach(MIMEText(f"#!/bin/sh\n{end}\n", "x-shellscript"))
    message.attach(_part(own))
    if config:
        message.attach(MIMEText(_cloud_config(config), "cloud-config"))
    return message.as_bytes()


def _cloud_config(config: dict[str, Any]) -> str:
    return "#cloud-config\n" + json.dumps(config)


def _is_for_cloud_init(own: bytes) -> bool:
    return own.startswith((b"#", GZIP)) or _is_message(own)


def _is_message(own: bytes) -> bool:
    """As cloud-init tells it."""
    return b"mime-version:" in own[:4096].lower()


def _part(own: bytes) -> Message:
    """Of a text cloud-init finds the kind by its first line."""
    if _is_message(own):
        return message_from_bytes(own)
    part = MIMEBase("application", "gzip") if own.startswith(GZIP) else MIMEBase("text", "plain")
    part.set_payload(own)
    # It reads what is not ASCII from base64 only; and a message has line ends of its own.
    (encode_7or8bit if own.isascii() and b"\r" not in own else encode_base64)(part)
    return part
