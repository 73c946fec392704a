"""What distDocker says of engines that cannot be used, and of settings that cannot be right."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from support.fixtures_dist import host_of
from support.netns import PLAIN_PORT, Certificates, RemoteEngine
from tango_async.config import Docker, DockerHost, Settings, Store, load
from tango_async.errors import ConfigError, VmmsUnavailable
from tango_async.vmms.dist import DistDocker

HOST = '[[docker.hosts]]\nname = "n0"\n'


async def refused(tmp_path: Path, *hosts: DockerHost) -> str:
    vmms = DistDocker(Settings(store=Store(data_dir=tmp_path), docker=Docker(hosts=hosts)), "here")
    with pytest.raises(VmmsUnavailable) as told:
        await vmms.open()
    return str(told.value)


def changed(engine: RemoteEngine, **changes: Any) -> DockerHost:
    host = host_of(engine, "n0")
    return DockerHost(**{name: getattr(host, name) for name in host.__struct_fields__} | changes)


@asynccontextmanager
async def speaks(api: str) -> AsyncIterator[str]:
    """The address of an engine without TLS that tells this version of its API."""

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": api, "NCPU": 1})

    app = web.Application()
    app.router.add_get("/{path:.*}", version)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"tcp://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_an_authority_that_does_not_vouch_for_the_engine(engines: list[RemoteEngine], tmp_path: Path) -> None:
    other = Certificates(tmp_path / "other")
    said = await refused(tmp_path, changed(engines[0], ca=other.ca))
    assert "docker.hosts: n0" in said and f"a certificate that ca ({other.ca}) does not know" in said


async def test_a_certificate_that_the_engine_does_not_take(engines: list[RemoteEngine], tmp_path: Path) -> None:
    other = Certificates(tmp_path / "other")
    said = await refused(tmp_path, changed(engines[0], cert=other.cert, key=other.key))
    assert "docker.hosts: n0" in said and f"does not take our certificate, cert ({other.cert})" in said


@contextmanager
def breaks_off(certificates: Certificates, *, shakes_hands: bool, resets: bool) -> Iterator[str]:
    """The address of a server that ends each connection, and says nothing in TLS of why."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.directory / "engine.pem", certificates.directory / "engine-key.pem")

    def serve() -> None:
        with suppress(OSError):
            while True:
                one, _ = listening.accept()
                with one, suppress(OSError):  # of one that breaks off, too; others come after it
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(resets), 0))
                    if not shakes_hands:
                        one.recv(65_536)
                        continue
                    with context.wrap_socket(one, server_side=True):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("shakes_hands", [False, True])
@pytest.mark.parametrize("resets", [False, True])
async def test_a_certificate_whose_refusal_is_lost(tmp_path: Path, shakes_hands: bool, resets: bool) -> None:
    """TLS 1.3 has a server refuse when the client is done already, and the end of the connection may overtake it."""
    made = Certificates(tmp_path / "made")
    made.sign("engine", "subjectAltName=IP:127.0.0.1")
    with breaks_off(made, shakes_hands=shakes_hands, resets=resets) as url:
        said = await refused(tmp_path, DockerHost(name="n0", url=url, ca=made.ca, cert=made.cert, key=made.key))
        assert "docker.hosts: n0" in said
        assert f"broke off; perhaps it does not take our certificate, cert ({made.cert}): " in said
        said = await refused(tmp_path, DockerHost(name="n0", url=url))
        assert "docker.hosts: n0" in said and "certificate" not in said, "none was shown"


async def test_a_plain_engine_that_is_asked_with_tls(engines: list[RemoteEngine], tmp_path: Path) -> None:
    async with speaks("1.40") as url:
        said = await refused(tmp_path, changed(engines[0], url=url))
    assert "find no common TLS" in said and "our certificate" not in said


async def test_a_file_that_is_not_there(engines: list[RemoteEngine], tmp_path: Path) -> None:
    said = await refused(tmp_path, changed(engines[0], key=tmp_path / "none.pem"))
    assert "docker.hosts: n0: ca, cert, key" in said and "none.pem" in said


async def test_an_engine_with_tls_that_is_asked_without(engines: list[RemoteEngine], tmp_path: Path) -> None:
    said = await refused(tmp_path, DockerHost(name="n0", url=engines[0].url))
    assert "docker.hosts: n0" in said and "HTTPS" in said


async def test_a_port_where_nobody_listens(engines: list[RemoteEngine], tmp_path: Path) -> None:
    said = await refused(tmp_path, DockerHost(name="n0", url=f"tcp://{engines[0].address}:{PLAIN_PORT}"))
    assert f"docker.hosts: n0 (tcp://{engines[0].address}:{PLAIN_PORT})" in said


async def test_an_engine_that_is_too_old(tmp_path: Path) -> None:
    async with speaks("1.30") as url:
        said = await refused(tmp_path, DockerHost(name="n0", url=url))
    assert "docker.hosts: n0" in said and "speaks API 1.30; 1.40 needed" in said


async def test_one_that_cannot_be_used_does_not_keep_the_others_from_work(
    engines: list[RemoteEngine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = (host_of(engines[0], "n0"), DockerHost(name="n1", url="tcp://127.0.0.1:1"))
    vmms = DistDocker(Settings(store=Store(data_dir=tmp_path), docker=Docker(hosts=hosts)), "here")
    with caplog.at_level(logging.ERROR):
        await vmms.open()
    try:
        assert "docker.hosts: n1 (tcp://127.0.0.1:1) gets no job" in caplog.text
        assert [host.healthy for host in vmms.hosts()] == [True, False] and "127.0.0.1:1" in vmms.hosts()[1].problem
    finally:
        await vmms.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{HOST}url = "tcp://h:1"\n{HOST}url = "tcp://h:2"', "docker.hosts: n0: two hosts have this name"),
        (f'{HOST}url = "tcp://h:1"\n[[docker.hosts]]\nname="n1"\nurl="tcp://h:1"', "another host has the same url"),
        (f'{HOST}url = "https://h:1"', "docker.hosts: n0: TLS needs ca, cert and key together"),
        (f'{HOST}url = "tcp://h:1"\nca = "/ca"', "docker.hosts: n0: TLS needs ca, cert and key together"),
        (f'{HOST}url = "ssh://h"\nca = "/ca"', "docker.hosts: n0: ca is for tcp:// and https:// only"),
        (f'{HOST}url = "unix:///s"\nkey = "/k"', "docker.hosts: n0: key is for tcp:// and https:// only"),
        (f'{HOST}url = "tcp://h:1"\nknown_hosts = "/k"', "docker.hosts: n0: known_hosts is for ssh:// only"),
        (f'{HOST}url = "ssh://h"\nkey = "k"', "docker.hosts: n0: key: k is no absolute path"),
        (f'{HOST}url = "h:1"', "url"),
        ('[[docker.hosts]]\nname = "A b"\nurl = "tcp://h:1"', "name"),
    ],
)
def test_settings_that_cannot_be_right_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        load(file, {})
