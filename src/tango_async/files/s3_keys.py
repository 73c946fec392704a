"""The keys of the S3 store: every kind of object there is, and what it holds.

labs/<lab>                          a courselab; empty
files/<lab>/<name>/<number>-<md5>   an upload; the one with the highest number stands, and none is ever written again
used/<lab>/<name>                   empty; written when an upload was used and is not written anew
pins/<pin>/<n>                      a job's own copy of an input
outputs/<ref>                       finished feedbacks
images/<md5>                        image archives
marks/<id>                          empty; the highest is the high-water mark of job ids
tmp/<random>                        what is on its way in

The md5 stands in the key, since an ETag is none and a listing shows no metadata. An upload that has a
key of its own can be removed without the risk of removing the one that has just taken its place.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from ..errors import BadName
from ..names import file_name

MOST = 1024
"""The longest key, in bytes."""

_UPLOAD = re.compile(r"(?P<number>[0-9]{12})-(?P<md5>[0-9a-f]{32})")
_PIN = re.compile(r"[0-9a-f]{24}-(?P<count>[0-9]{1,6})")


class Upload(NamedTuple):
    """What the key of an upload says. The later of two is the greater."""

    number: int
    md5: str
    name: str
    lab: str

    @property
    def key(self) -> str:
        return f"{uploads(self.lab, self.name)}{self.number:012}-{self.md5}"


def lab(lab: str) -> str:
    return _whole(f"labs/{_part(lab, 'courselab')}")


def uploads(lab: str, name: str | None = None) -> str:
    """What begins the keys of a courselab's uploads, or of all uploads under one name."""
    folder = f"files/{_part(lab, 'courselab')}/"
    return folder if name is None else _whole(f"{folder}{_part(name, 'file')}/")


def read_upload(lab: str, key: str) -> Upload | None:
    """None for a key that this service did not give."""
    name, _, rest = key.removeprefix(uploads(lab)).partition("/")
    parts = _UPLOAD.fullmatch(rest)
    return Upload(int(parts["number"]), parts["md5"], _plain(name), lab) if parts else None


def used(lab: str, name: str | None = None) -> str:
    """Where it is noted that an upload was used; without a name, what begins them all."""
    folder = f"used/{_part(lab, 'courselab')}/"
    return folder if name is None else _whole(folder + _part(name, "file"))


def used_name(lab: str, key: str) -> str:
    return _plain(key.removeprefix(used(lab)))


def new_pin(count: int) -> str:
    return f"{secrets.token_hex(12)}-{count}"


def pinned(pin: str) -> list[str]:
    """The keys of a pin's copies. Raises BadName."""
    parts = _PIN.fullmatch(pin)
    if parts is None:
        raise BadName("Bad pin")
    return [f"pins/{pin}/{n}" for n in range(int(parts["count"]))]


def pin_of(key: str) -> str:
    return key.split("/")[1]


def output(ref: str) -> str:
    return f"outputs/{_part(ref, 'reference')}"


def image(ref: str) -> str:
    return f"images/{_part(ref, 'reference')}"


def mark(number: int) -> str:
    return f"marks/{number:012}"


def tmp() -> str:
    return f"tmp/{secrets.token_hex(16)}"


def last(key: str) -> str:
    """The name of an object that stands in a folder of its kind."""
    return _plain(key.rpartition("/")[2])


def _part(name: str, what: str) -> str:
    """One part of a key. A backslash is a separator to some servers, and so it is escaped."""
    return file_name(name, what).replace("%", "%25").replace("\\", "%5C")


def _plain(part: str) -> str:
    return part.replace("%5C", "\\").replace("%25", "%")


def _whole(key: str) -> str:
    if len(key.encode()) > MOST - 300:  # the rest is for the store's prefix and the upload's number
        raise BadName("Bad file: the name is too long for this store")
    return key
