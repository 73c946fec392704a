"""What the tables of settings are made of: kinds of values, each with its bounds."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
from msgspec import Meta

from ..model import LABEL, MAX_POOL

Count = Annotated[int, Meta(ge=1, le=100_000)]
Bytes = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Days = Annotated[float, Meta(ge=0)]
Cores = Annotated[float, Meta(gt=0, le=4096)]
CoreList = Annotated[str, Meta(pattern=r"^([0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*)?$")]
Room = Annotated[int, Meta(ge=0)]
Label = Annotated[str, Meta(pattern=f"^{LABEL}$")]
LEAST_PRIORITY, MOST_PRIORITY = -100, 100
Priority = Annotated[int, Meta(ge=LEAST_PRIORITY, le=MOST_PRIORITY)]
Machines = Annotated[int, Meta(ge=0, le=MAX_POOL)]

HOST_MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of `tango.toml`."""
