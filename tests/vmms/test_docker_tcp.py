"""localDocker over TCP: plain, and with TLS by Docker's own variables, through a proxy before the real engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from contracts.machines import MB, Backend, Ran, follow, inputs, limit, make
from support.engine import Engine
from tango_async.config import Docker, Settings
from tango_async.errors import VmmsUnavailable
from tango_async.machine import Exit
from tango_async.vmms.docker import LocalDocker


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()


@asynccontextmanager
async def proxy(engine: Engine, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """HOST:PORT where the engine answers."""

    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        inner, outer = await asyncio.open_unix_connection(engine.path)
        await asyncio.gather(pump(reader, outer), pump(inner, writer), return_exceptions=True)
        for each in (outer, writer):
            each.close()
            with suppress(OSError):
                await each.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", ssl=context)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.wait(served, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, cert.pem and key.pem for both sides."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *key, "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", *name]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    shutil.copy(directory / "cert.pem", directory / "ca.pem")
    return directory


@pytest.fixture
def server_side(certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def run_one(backend: Backend, host: str) -> Ran:
    """A job with some input and output on that address."""
    vmms = LocalDocker(Settings(docker=Docker(host=host)), "tcp-test")
    await vmms.open()
    try:
        machine = await vmms.initialize_vm(backend.spec(), "tester")
        try:
            await vmms.copy_in(machine, inputs({"data": os.urandom(3 * MB)} | make("wc -c <data; echo end")), limit())
            async with asyncio.timeout(60):
                return await follow(vmms, machine)
        finally:
            await vmms.destroy_vm(machine)
    finally:
        await vmms.close()


async def test_plain_tcp(docker_backend: Backend, docker_engine: Engine) -> None:
    async with proxy(docker_engine) as address:
        assert await run_one(docker_backend, f"tcp://{address}") == Ran(Exit(0), b"3145728\nend\n")


async def test_tls_ends_the_input_as_well(
    docker_backend: Backend, docker_engine: Engine, certificates: Path, server_side: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates))
    async with proxy(docker_engine, server_side) as address:
        assert await run_one(docker_backend, f"tcp://{address}") == Ran(Exit(0), b"3145728\nend\n")


async def test_tls_without_certificates_says_which_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    vmms = LocalDocker(Settings(docker=Docker(host="tcp://127.0.0.1:1")), "tcp-test")
    with pytest.raises(VmmsUnavailable, match=r"ca\.pem") as told:
        await vmms.open()
    assert str(tmp_path) in str(told.value)


async def test_a_port_where_nobody_listens_is_named() -> None:
    vmms = LocalDocker(Settings(docker=Docker(host="tcp://127.0.0.1:1")), "tcp-test")
    with pytest.raises(VmmsUnavailable, match=r"127\.0\.0\.1:1"):
        await vmms.open()
