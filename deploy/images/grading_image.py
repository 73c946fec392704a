#!/usr/bin/env python3
"""Builds the grading image from Debian packages, without a registry, and loads it into the engine.

    grading_image.py             build (or take from the cache) and load as `autograding_image`
    grading_image.py --archive   only print the path of the archive, in `docker save` form

The image is made from the release that this machine runs, since its keyring and mirrors are at
hand; the Dockerfile beside this file makes the same image from a registry's base. The archive is
kept in .cache/ under a name that changes with the packages, the release and this script. The engine
is the docker client's: DOCKER_HOST is honoured.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

IMAGE = "autograding_image"
PACKAGES = ("make", "gcc", "g++", "libc6-dev", "python3")
UNREAD = ("man", "doc", "info", "locale", "lintian")
CACHE = Path(__file__).resolve().parents[2] / ".cache"

USERS = " && ".join(
    (
        'chroot "$1" useradd --uid 1000 --user-group --create-home --shell /bin/bash autolab',
        'chroot "$1" useradd --uid 1001 --user-group --create-home --shell /bin/bash autograde',
        'chroot "$1" install -d -o autograde -g autograde -m 0755 /home/autograde/autolab',
    )
)
"""The users that Tango's images have: autolab, and autograde who runs the jobs."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds and loads the grading image.")
    parser.add_argument("--archive", action="store_true", help="only print the archive's path")
    only_archive = parser.parse_args().archive
    try:
        if only_archive:
            sys.stdout.write(f"{cached()}\n")
        else:
            subprocess.run(["docker", "version"], check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["docker", "load", "--input", str(cached())], check=True)
    except FileNotFoundError as e:
        return _fail(f"{e.filename} is not installed: apt-get install docker.io")
    except subprocess.CalledProcessError as e:
        return _fail(f"`{' '.join(map(str, e.cmd[:2]))}` ended with status {e.returncode}")
    return 0


def _fail(why: str) -> int:
    sys.stderr.write(f"grading-image: {why}\n")
    return 1


def cached() -> Path:
    """The archive, built if it is not there yet."""
    release = platform.freedesktop_os_release()
    debian = Path("/etc/debian_version")
    point = debian.read_text().strip() if debian.exists() else ""
    parts = (release["ID"], release.get("VERSION_ID", ""), point, *PACKAGES, Path(__file__).read_text())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    archive = CACHE / f"grading-image-{key}.tar"
    if archive.exists():
        return archive
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two that want it at once, the second finds it there
        if archive.exists():
            return archive
        with tempfile.TemporaryDirectory(prefix="image-", dir=CACHE) as work:
            layer, packed = Path(work) / "layer.tar", Path(work) / "image.tar"
            bootstrap(release["VERSION_CODENAME"], layer)
            pack(layer, packed)
            packed.replace(archive)
    return archive


def bootstrap(suite: str, layer: Path) -> None:
    """The root file system, as a tar."""
    if shutil.which("mmdebstrap") is None:
        install("mmdebstrap")
    slim = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD]
    include = f"--include={','.join(PACKAGES)}"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", include, *slim, f"--customize-hook={USERS}"]
    subprocess.run([*command, suite, str(layer)], check=True, stdout=sys.stderr)


def install(package: str) -> None:
    """From the distribution, as root or by sudo."""
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "--no-install-recommends", "-y", package]):
        subprocess.run([*prefix, *step], check=True, stdout=sys.stderr, env=environment)


def pack(layer: Path, archive: Path) -> None:
    """One layer as `docker save` writes it, so that `docker load` and Tango's build both take it."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Cmd": ["/bin/bash"], "WorkingDir": "/home/autograde/autolab"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [f"{IMAGE}:latest"], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for name, value in (("config.json", config), ("manifest.json", manifest)):
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tar.add(layer, "layer.tar")


if __name__ == "__main__":
    sys.exit(main())
