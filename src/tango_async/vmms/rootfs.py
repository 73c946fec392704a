"""What a job in a sandbox sees: bubblewrap's arguments, nothing else.

The root is an empty tmpfs. Into it go, read-only, the system directories of the host or of an image
directory; on the host never /etc, /var, /run, /root, /home, /tmp or anything below them, because
through a read-only bind of the whole root a job has reached a Redis socket. Only the home, /tmp and
/dev/shm can be written, each with a size; /dev and the root itself are made read-only, or a job could
fill the host's memory through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..machine import MachineSpec
from . import seccomp
from .bootstrap import HOME, PATH, WORK_DIR

HOST = "host"
"""In `[sandbox.images]`: the host's own system directories."""

SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
HIDDEN = frozenset({"proc", "sys", "dev", "run", "tmp", "home", "root", "mnt", "media", "boot", "lost+found"})
SHM_BYTES = 64 * 1024**2

UID = 1001
"""A job's uid and gid inside, where the image does not say."""

ETC: Mapping[str, str] = {
    "passwd": f"""\
root:x:0:0:root:/root:/bin/sh
autolab:x:1000:1000:autolab:/home/autolab:/bin/sh
autograde:x:{UID}:{UID}:autograde:{HOME}:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
""",
    "group": f"root:x:0:\nautolab:x:1000:\nautograde:x:{UID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 tango\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
}
"""The host's /etc, as far as a job sees one."""

FILTER, FILTER_PINNED, _FILTER_FD = "seccomp", "seccomp-pinned", 4

FILES: Mapping[str, bytes] = {name: text.encode() for name, text in ETC.items()} | {
    FILTER: seccomp.program(),
    FILTER_PINNED: seccomp.program(pinned=True),
}
"""What bubblewrap reads from descriptors."""


@dataclass(frozen=True, slots=True)
class View:
    """One image's part of the arguments.

    `files` maps a descriptor that bubblewrap must be given to the name of the one of FILES it reads there.
    """

    arguments: tuple[str, ...]
    uid: int
    gid: int
    files: Mapping[int, str]

    def pinned(self) -> View:
        """The same for a job that may not change its affinity."""
        return replace(self, files={**self.files, _FILTER_FD: FILTER_PINNED})


def view(root: str) -> View:
    """The view of an image's root directory, or of HOST. Raises OSError if it cannot be read."""
    return _host() if root == HOST else _image(Path(root))


@cache
def _host() -> View:
    arguments = [a for name in SYSTEM for a in _entry(Path("/") / name, f"/{name}")]
    arguments += ["--perms", "0755", "--dir", "/etc"]
    for kept in ("/etc/alternatives", "/etc/ld.so.cache"):
        arguments += ["--ro-bind-try", kept, kept]
    etc = dict(zip((5, 7, 8, 9), ETC, strict=True))
    for descriptor, name in etc.items():
        arguments += ["--perms", "0444", "--file", str(descriptor), f"/etc/{name}"]
    return View((*arguments, "--dir", "/var", "--symlink", "../tmp", "/var/tmp"), UID, UID, {_FILTER_FD: FILTER, **etc})  # noqa: S108


def _image(root: Path) -> View:
    arguments = [a for e in sorted(root.iterdir()) if e.name not in HIDDEN for a in _entry(e, f"/{e.name}")]
    if (root / "var/tmp").is_dir():
        arguments += ["--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", "/var/tmp"]  # noqa: S108
    uid, gid = _autograde(root / "etc/passwd")
    return View((*arguments, "--dir", "/run", "--dir", "/root"), uid, gid, {_FILTER_FD: FILTER})


def _entry(source: Path, at: str) -> list[str]:
    if source.is_symlink():
        return ["--symlink", str(source.readlink()), at]
    return ["--ro-bind", str(source), at] if source.exists() else []


def _autograde(passwd: Path) -> tuple[int, int]:
    """The ids of Tango's user in its images, so that `whoami` and the owners of files read well."""
    try:
        lines = passwd.read_text(errors="replace").splitlines()
    except OSError:
        return UID, UID
    for name, _, uid, gid, *_ in (line.split(":") for line in lines if line.count(":") >= 4):
        if name == "autograde" and uid.isdigit() and gid.isdigit() and int(uid) > 0:
            return int(uid), int(gid)
    return UID, UID


def arguments(bwrap: str, seen: View, spec: MachineSpec, *, nested_users: bool) -> list[str]:
    """The command up to the program. The sandbox's init is the program itself.

    As init it cannot be killed nor stopped from inside, and its end is the end of every process there
    before anybody hears of it. Descriptor 6 receives its pid.
    """
    size = str(spec.disk_bytes)
    return [
        bwrap, "--unshare-all", "--unshare-user", *([] if nested_users else ["--disable-userns"]),
        "--die-with-parent", "--new-session", "--as-pid-1", "--info-fd", "6", "--cap-drop", "ALL",
        "--seccomp", str(_FILTER_FD),
        "--uid", str(seen.uid), "--gid", str(seen.gid), "--hostname", "tango",
        "--clearenv", "--setenv", "HOME", HOME, "--setenv", "PATH", PATH, "--setenv", "USER", "autograde",
        "--setenv", "LOGNAME", "autograde", "--setenv", "LANG", "C.UTF-8", "--setenv", "TERM", "dumb",
        *seen.arguments,
        "--proc", "/proc", "--dev", "/dev",
        "--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev",  # noqa: S108
        "--perms", "1777", "--size", size, "--tmpfs", "/tmp",  # noqa: S108
        "--perms", "0755", "--size", size, "--tmpfs", HOME, "--perms", "0755", "--dir", WORK_DIR,
        "--remount-ro", "/", "--chdir", HOME,
    ]  # fmt: skip
