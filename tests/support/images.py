"""Images for tests: tiny archives as `docker save` writes them, and variations of the grading image."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from support.engine import IMAGE, Engine

SAVED_HERE = f"test-run={uuid4().hex}"
"""A label of the images that this process saved, whatever becomes of their names."""


def tar(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def saved(*images: tuple[bytes, list[str]]) -> bytes:
    """An archive of images of one file each: its content and the image's tags."""
    files: dict[str, bytes] = {}
    manifest = []
    for content, tags in images:
        layer = tar({"content": content})
        digest = hashlib.sha256(layer).hexdigest()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": dict([SAVED_HERE.split("=")])},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        files |= {f"{digest}.json": json.dumps(config).encode(), f"{digest}.tar": layer}
        manifest.append({"Config": f"{digest}.json", "RepoTags": tags, "Layers": [f"{digest}.tar"]})
    return tar(files | {"manifest.json": json.dumps(manifest).encode()})


async def chunks(data: bytes, size: int = 4096) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@contextmanager
def variation(engine: Engine, files: dict[str, bytes] | None = None, **config: Any) -> Iterator[str]:
    """The grading image with other files and another configuration, while the block runs."""
    name = f"test-{uuid4().hex[:12]}"
    body = json.dumps({"Image": IMAGE, "Entrypoint": ["/bin/true"]}).encode()
    container = json.loads(engine.call("POST", "/containers/create", body)[1])["Id"]
    if files:
        engine.call("PUT", f"/containers/{container}/archive", tar(files), path="/")
    engine.call("POST", "/commit", json.dumps(config).encode(), container=container, repo=name)
    engine.remove(container)
    try:
        yield name
    finally:
        engine.call("DELETE", f"/images/{name}")
