"""What each back-end stands on here, and the settings of a service on it.

The cloud's API and the cluster's manager are doubles. The machines are real: sandboxes, containers of real
engines, and behind the doubles an sshd for each instance.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from support.ec2 import KEY, REGION, SECRET, Cloud, cloud_on, moto
from support.engine import IMAGE, Engine, Lacking, any_engine
from support.netns import RemoteEngine, two_engines
from support.tashi import ClusterManager
from support.vm import SshVm

STANDS_ON = {
    "localSandbox": "bubblewrap, with this machine's own compiler and Python",
    "localDocker": "this machine's Docker engine, or a private one if none answers",
    "distDocker": "two real Docker engines with TLS, each in a network namespace of its own",
    "ec2SSH": "doubles: moto is EC2's API, and each instance a real sshd in namespaces of its own",
    "tashiSSH": "doubles: a program is Tashi's cluster manager, and each VM a real sshd in namespaces of its own",
}

ENGINE_HOST = """
[[docker.hosts]]
name = "n{number}"
url = "{url}"
slots = 2
ca = "{ca}"
cert = "{cert}"
key = "{key}"
"""


@asynccontextmanager
async def standing(vmms: str, directory: Path) -> AsyncIterator[dict[str, str]]:
    """Settings of a service on the back-end, which stands while the block runs. Raises Lacking."""
    async with AsyncExitStack() as stack:
        if vmms == "localSandbox":
            yield sandbox()
        elif vmms == "localDocker":
            yield local_docker(stack.enter_context(any_engine()))
        elif vmms == "distDocker":
            yield dist_docker(stack.enter_context(two_engines(directory)), directory / "tango.toml")
        elif vmms == "ec2SSH":
            virtual_machines()
            yield ec2(await stack.enter_async_context(cloud_on({KEY: stack.enter_context(moto())})))
        elif vmms == "tashiSSH":
            virtual_machines()
            yield tashi(await stack.enter_async_context(ClusterManager(directory)), directory / "images")


def virtual_machines() -> None:
    """Raises Lacking."""
    if missing := SshVm.missing():
        raise Lacking(f"there can be no virtual machines: {missing}")


def sandbox() -> dict[str, str]:
    """Raises Lacking."""
    if shutil.which("bwrap") is None:
        raise Lacking("bubblewrap is not installed: apt-get install bubblewrap")
    return {"TANGO_VMMS": "localSandbox"}


def local_docker(engine: Engine) -> dict[str, str]:
    return {"TANGO_VMMS": "localDocker", "DOCKER_HOST": engine.host}


def dist_docker(engines: list[RemoteEngine], config: Path, more: str = "", **docker: object) -> dict[str, str]:
    """Writes the file, with further settings of `docker`, and `more`."""
    text = "[docker]\n" + "".join(f"{name} = {value}\n" for name, value in docker.items())
    for number, engine in enumerate(engines):
        tls = engine.certificates
        assert tls is not None
        text += ENGINE_HOST.format(number=number, url=engine.url, ca=tls.ca, cert=tls.cert, key=tls.key)
    config.write_text(text + more)
    return {"TANGO_VMMS": "distDocker", "TANGO_CONFIG": str(config)}


def ec2(cloud: Cloud) -> dict[str, str]:
    return {
        "TANGO_VMMS": "ec2SSH",
        "TANGO_DISPATCHER_MACHINE_WAIT_S": "100",
        "TANGO_LIMITS_MAX_TIMEOUT_S": "600",
        "TANGO_EC2_REGION": REGION,
        "TANGO_EC2_ENDPOINT": cloud.url,
        "TANGO_EC2_ACCESS_KEY_ID": KEY,
        "TANGO_EC2_ACCESS_KEY": SECRET,
        "TANGO_EC2_USER": "root",
        "TANGO_EC2_SUBNETS": cloud.subnets[KEY],
        "TANGO_EC2_BOOT_S": "30",
        "TANGO_EC2_LOST_S": "20",
    }


def tashi(manager: ClusterManager, store: Path) -> dict[str, str]:
    """Puts an image in the cluster's store, which it makes."""
    store.mkdir()
    (store / f"{IMAGE}.img").touch()
    return {
        "TANGO_VMMS": "tashiSSH",
        "TANGO_TASHI_HOST": "127.0.0.1",
        "TANGO_TASHI_PORT": str(manager.port),
        "TANGO_TASHI_IMAGE_DIR": str(store),
        "TANGO_TASHI_USER": "root",
        "TANGO_TASHI_PRIVATE_KEY": str(manager.private_key),
        "TANGO_TASHI_HOST_KEYS": manager.host_key,
    }
