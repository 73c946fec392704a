"""distDocker over ssh: one connection a host, to a real sshd beside a real engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from contracts.machines import MB, Ran, Step, follow, inputs, limit, make, wait_until
from support.netns import RemoteEngine
from support.ward import Ward
from tango_async.config import Docker, DockerHost, Settings, Store
from tango_async.errors import ConfigError, VmmsUnavailable
from tango_async.machine import Exit
from tango_async.vmms import dist_host, dist_ssh, outputs
from tango_async.vmms.base import load
from tango_async.vmms.dist import DistDocker
from vmms.conftest import Dist, dist_on


@dataclass
class Keys:
    """Ours, and a file that names the host's."""

    private: Path
    public: str
    known_hosts: Path


@pytest.fixture
def engine(engines: list[RemoteEngine]) -> RemoteEngine:
    return engines[0]


@pytest.fixture
def keys(engine: RemoteEngine, tmp_path: Path) -> Iterator[Keys]:
    """With sshd running."""
    private, known = tmp_path / "key", tmp_path / "known"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(private)], check=True)
    public = private.with_suffix(".pub").read_text()
    known.write_text(f"{engine.address} {engine.start_sshd(public)}\n")
    yield Keys(private, public, known)
    engine.stop_sshd()


def settings_of(engine: RemoteEngine, keys: Keys, data_dir: Path, **changes: object) -> Settings:
    url = f"ssh://root@{engine.address}{engine.path}"
    host = DockerHost(name="n0", url=url, slots=4, key=keys.private, known_hosts=keys.known_hosts)
    hosts = (msgspec.structs.replace(host, **changes),)
    return Settings(store=Store(data_dir=data_dir), docker=Docker(hosts=hosts))


async def opened(settings: Settings) -> DistDocker:
    vmms = DistDocker(settings, "ssh-test")
    await vmms.open()
    return vmms


async def test_jobs_run_over_one_connection(ward: Ward, engine: RemoteEngine, keys: Keys, tmp_path: Path) -> None:
    async with dist_on(ward, [engine], tmp_path, settings_of(engine, keys, tmp_path)) as dist:
        files = {"data": os.urandom(3 * MB)} | make("wc -c <data; echo end")
        ran = await asyncio.gather(*(dist.run(files) for _ in range(12)))
        assert ran == [Ran(Exit(0), b"3145728\nend\n")] * 12
        (socket,) = (tmp_path / "dispatcher/ssh").iterdir()
        assert socket.parent.stat().st_mode & 0o077 == 0
    assert not [*(tmp_path / "dispatcher/ssh").iterdir()]


async def test_a_job_outlives_its_connection(
    ward: Ward, engine: RemoteEngine, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist_ssh, "KEEPALIVE_S", 0.5)
    monkeypatch.setattr(dist_host, "LOOK_S", 2.0)
    monkeypatch.setattr(outputs, "ANSWER_S", 2.0)
    async with dist_on(ward, [engine], tmp_path, settings_of(engine, keys, tmp_path)) as dist:
        assert isinstance(dist, Dist) and isinstance(dist.vmms, DistDocker)
        async with dist.machine() as machine:
            one, two = Step(), Step()
            job = make(f"echo 1; {one}; echo 2; {two}; echo 3")
            await dist.vmms.copy_in(machine, inputs(job), limit(timeout_s=100))
            following = asyncio.create_task(follow(dist.vmms, machine))
            await one.reached()
            engine.cut()
            await wait_until(lambda: not dist.vmms.hosts()[0].healthy, "the cut is noticed")  # type: ignore[attr-defined]
            one.go_on()
            await two.reached()
            await asyncio.sleep(1.0)
            engine.heal()
            two.go_on()
            assert await following == Ran(Exit(0), b"1\n2\n3\n")
            await wait_until(lambda: dist.vmms.hosts()[0].healthy, "it is back")  # type: ignore[attr-defined]


async def test_the_host_sends_small_packets_at_once(engine: RemoteEngine, keys: Keys, tmp_path: Path) -> None:
    engine.stop_sshd()
    engine.start_sshd(keys.public, "LogLevel DEBUG2")
    vmms = await opened(settings_of(engine, keys, tmp_path))
    await vmms.close()
    assert "setting TCP_NODELAY" in (engine.directory / "sshd-log").read_text()


async def test_one_that_was_given_up_half_way_is_made_anew(
    engine: RemoteEngine, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel, half_way = dist_ssh.Tunnel(settings_of(engine, keys, tmp_path).docker.hosts[0], tmp_path), asyncio.Event()

    async def hang(_: object) -> None:
        half_way.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as hanging:
        hanging.setattr(dist_ssh, "_without_delay", hang)
        keeping = asyncio.create_task(tunnel.keep())
        await half_way.wait()
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
    await tunnel.keep()
    assert tunnel.socket.exists()
    await tunnel.close()


@pytest.mark.parametrize("may", ['command="sleep 60"', 'command="/bin/false"'])
async def test_a_host_may_allow_nothing_but_to_be_forwarded_to(
    engine: RemoteEngine, keys: Keys, tmp_path: Path, may: str
) -> None:
    (engine.directory / "authorized").write_text(f"restrict,port-forwarding,{may} {keys.public}")
    vmms = await opened(settings_of(engine, keys, tmp_path))
    assert [host.healthy for host in vmms.hosts()] == [True]
    await vmms.close()


async def test_a_host_may_allow_no_session(engine: RemoteEngine, keys: Keys, tmp_path: Path) -> None:
    engine.stop_sshd()
    engine.start_sshd(keys.public, "MaxSessions 0")
    vmms = await opened(settings_of(engine, keys, tmp_path))
    assert [host.healthy for host in vmms.hosts()] == [True]
    await vmms.close()


async def test_another_host_key_is_not_trusted(engine: RemoteEngine, keys: Keys, tmp_path: Path) -> None:
    keys.known_hosts.write_text(f"{engine.address} {keys.public}\n")
    with pytest.raises(VmmsUnavailable, match=r"docker\.hosts: n0: the key of .* is not the one in known_hosts"):
        await opened(settings_of(engine, keys, tmp_path))


async def test_a_key_that_the_host_refuses_is_named(engine: RemoteEngine, keys: Keys, tmp_path: Path) -> None:
    (engine.directory / "authorized").write_text("")
    with pytest.raises(VmmsUnavailable, match=r"docker\.hosts: n0: .* refuses the key \(.*/key\) of root"):
        await opened(settings_of(engine, keys, tmp_path))


async def test_a_socket_that_is_not_there_is_named(engine: RemoteEngine, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(VmmsUnavailable, match=r"docker\.hosts: n0 .*/no-such-socket"):
        await opened(settings_of(engine, keys, tmp_path, url=f"ssh://root@{engine.address}/no-such-socket"))


async def test_what_cannot_be_a_host_is_told_at_once(engine: RemoteEngine, keys: Keys, tmp_path: Path) -> None:
    for url, said in (("ssh://root@host:port", "url"), ("ssh://@", "no host")):
        with pytest.raises(ConfigError, match=said):
            load("distDocker", settings_of(engine, keys, tmp_path, url=url), "here")
    with pytest.raises(VmmsUnavailable, match="key or known_hosts"):
        await opened(settings_of(engine, keys, tmp_path, key=tmp_path / "none"))
