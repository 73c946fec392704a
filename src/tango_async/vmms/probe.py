"""Whether this host can run sandboxes, and if not, what to install or to allow.

A job is never run with less than a whole sandbox, so every shortcoming is told before the first one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import VmmsUnavailable

NEEDS = {
    "sh": "dash",
    "cat": "coreutils",
    "timeout": "coreutils",
    "make": "make",
    "tar": "tar",
}
"""Program → Debian package. `make` and `tar` run inside, but on the host's image they are the host's."""

FORBIDS = {
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "user/max_user_namespaces": ("0", "15000"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
}
"""Below /proc/sys: the value that forbids user namespaces, and one that allows them."""

OPTIONS = ("--size", "--perms", "--clearenv", "--as-pid-1", "--info-fd", "--seccomp")
PROBE_S = 20.0


def programs(bwrap: str, *, as_root: bool, on_host: bool, pins: bool = False) -> str:
    """The full path of bubblewrap. Raises VmmsUnavailable naming the first package that is missing."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as e:
        raise VmmsUnavailable("localSandbox: Linux 5.4 or later is needed, for descriptors of processes") from e
    found = shutil.which(bwrap)
    if found is None:
        raise VmmsUnavailable(f"localSandbox: {bwrap} is not installed; try: apt-get install bubblewrap")
    needed = NEEDS | ({"chroot": "coreutils"} if as_root else {}) | ({"taskset": "util-linux"} if pins else {})
    for program, package in needed.items():
        if (on_host or program not in ("make", "tar")) and shutil.which(program) is None:
            raise VmmsUnavailable(f"localSandbox: {program} is not installed; try: apt-get install {package}")
    return found


def options(bwrap: str) -> frozenset[str]:
    """What this bubblewrap understands. Raises VmmsUnavailable if it is too old."""
    asked = _run([bwrap, "--help"])
    known = frozenset(re.findall(r"^\s+(--[a-z0-9-]+)", asked.stdout + asked.stderr, re.MULTILINE))
    missing = [option for option in OPTIONS if option not in known]
    if missing:
        version = _run([bwrap, "--version"]).stdout.strip() or bwrap
        raise VmmsUnavailable(
            f"localSandbox: {version} has no {missing[0]}; version 0.7 or later is needed (0.8 is in Debian 12)"
        )
    return known


def sandbox(command: Sequence[str], files: Sequence[str]) -> None:
    """Runs one sandbox. Raises VmmsUnavailable saying what forbids it."""
    redirected = ["sh", "-c", f'exec "$@" 6>/dev/null {" ".join(files)}', "probe", *command]
    tried = _run(redirected)
    if tried.returncode != 0:
        raise VmmsUnavailable(f"localSandbox: {_reason(tried.stderr.strip() or f'status {tried.returncode}')}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise VmmsUnavailable(f"localSandbox: {command[0]}: {e}") from e


def _reason(said: str) -> str:
    for name, (forbidden, allowed) in FORBIDS.items():
        try:
            value = (Path("/proc/sys") / name).read_text().strip()
        except OSError:
            continue
        if value == forbidden:
            key = name.replace("/", ".")
            return f"{key} = {value} forbids user namespaces; try: sysctl -w {key}={allowed} (bwrap said: {said})"
    return f"bwrap said: {said}; a container needs its own /proc unmasked and user namespaces allowed"
