"""Redis as installations have it: users, passwords, rights, TLS, databases; and what is said when one is wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from support.jobs import claim_one, spec
from support.places import own_port
from support.redis_fleet import PROGRAM, certificates, server_on
from support.redis_server import RedisServer
from tango_async import config
from tango_async.config import Settings
from tango_async.errors import ConfigError, QueueRefused, QueueUnavailable
from tango_async.model import Verdict
from tango_async.queue.address import options
from tango_async.queue.bells import Bells
from tango_async.queue.redis import Queue

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no redis-server")

RULES = re.search(r"^user tango on >PASSWORD (.*)$", Path("docs/operating.md").read_text(), re.MULTILINE)[1]  # type: ignore[index]
LUA = resources.files("tango_async.queue") / "lua"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[RedisServer, int]]:
    server, port = server_on(tmp_path / "redis")
    server.start()
    yield server, port
    server.kill()


def at(url: str, **changes: object) -> Settings:
    return Settings(queue=config.Queue(url=url, **changes))  # type: ignore[arg-type]


async def round_trip(settings: Settings) -> int:
    """A job's whole life, with its bell. Answers the id."""
    queue, bells = Queue(settings), Bells(settings)
    try:
        await queue.open()
        heard = asyncio.create_task(bells.wait_classes(["autograding_image"], 60))
        await asyncio.sleep(0.05)
        added = await queue.add(spec(callback_url="http://h/"), fingerprint=uuid4().hex)
        assert await heard
        claim = await claim_one(queue)
        assert claim is not None
        await queue.start(claim, "machine")
        await queue.show(claim, 0, b"output")
        await queue.extend([(claim.id, claim.seq)])
        await queue.end(claim, Verdict.SUCCESS, "text", "ref")
        await queue.due(5, hold_s=60)
        await queue.reap()
        await bells.wake()
        await queue.figures()
        await queue.forecasts([added.id], 1, ["autograding_image"])
        await queue.retire([added.id], whatever=True)
        await queue.forget([added.id])
        return added.id
    finally:
        await bells.close()
        await queue.close()


def allow(server: RedisServer, rules: str) -> None:
    server._ask("ACL", "SETUSER", "tango", "reset", "on", ">right", *rules.split())


async def test_a_user_with_just_the_documented_rights_does_everything(server: tuple[RedisServer, int]) -> None:
    allow(server[0], RULES)
    url = f"redis://127.0.0.1:{server[1]}"
    await round_trip(at(url, username="tango", password="right"))
    await round_trip(at(f"redis://tango:right@127.0.0.1:{server[1]}"))
    assert "acl denied" not in str(server[0]._ask("ACL", "LOG")) and server[0]._ask("ACL", "LOG") == []


def test_every_command_is_among_those_whose_rights_are_tried() -> None:
    used = {
        name
        for file in LUA.iterdir()
        for name in re.findall(r"redis\.p?call\('([A-Z]+)'", file.read_text())
        if file.name != "rights.lua"
    }
    for module in ("redis", "outbox", "history", "orders", "figures", "asking", "bells"):
        text = (resources.files("tango_async.queue") / f"{module}.py").read_text()
        used |= set(re.findall(r"[( ]\"([A-Z]{3,})\", ", text))
    tried = set(re.findall(r"\{'([A-Z]+)'", (LUA / "rights.lua").read_text()))
    assert used - tried <= {"CLIENT", "EVALSHA", "EVAL", "PING", "INFO", "PATH", "REV", "BLPOP"}


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("-zadd", "zadd"),
        ("-client|unblock", r"client\|unblock"),
        ("-blpop -hgetall", "hgetall, blpop"),
        ("-evalsha", "evalsha"),
        ("-eval", "eval"),
        ("-info", "info"),
        ("resetkeys ~other:*", "denies the user"),
    ],
)
async def test_missing_rights_are_named_at_the_start(server: tuple[RedisServer, int], without: str, said: str) -> None:
    allow(server[0], f"{RULES} {without}")
    queue = Queue(at(f"redis://127.0.0.1:{server[1]}", username="tango", password="right"))
    with pytest.raises(QueueRefused, match=rf"(?s)queue.username.*{said}|{said}.*queue.username"):
        await queue.open()
    await queue.close()


@pytest.mark.parametrize("user", ["tango", "nobody"])
async def test_a_wrong_password_is_said_with_its_setting_and_without_itself(
    server: tuple[RedisServer, int], user: str
) -> None:
    allow(server[0], RULES)
    for url in (server[0].url, f"redis://127.0.0.1:{server[1]}"):
        queue = Queue(at(url, username=user, password="wr0ng"))
        with pytest.raises(QueueRefused, match=r"queue\.password") as caught:
            await queue.open()
        assert "wr0ng" not in str(caught.value)
        await queue.close()
    if user == "tango":
        allow(server[0], f"{RULES} >wr0ng")
        await round_trip(at(server[0].url, username=user, password="wr0ng"))


async def test_a_password_that_is_not_given_is_asked_for(server: tuple[RedisServer, int]) -> None:
    server[0]._ask("CONFIG", "SET", "requirepass", "secret")
    for url in (server[0].url, f"redis://127.0.0.1:{server[1]}"):
        queue = Queue(at(url))
        with pytest.raises(QueueRefused, match=r"queue\.password"):
            await queue.open()
        await queue.close()
    await round_trip(at(f"redis://127.0.0.1:{server[1]}", password="secret"))
    await round_trip(at(f"redis://:secret@127.0.0.1:{server[1]}"))


async def test_databases_and_prefixes_keep_installations_apart(server: tuple[RedisServer, int]) -> None:
    url = f"redis://127.0.0.1:{server[1]}"
    places = [at(url), at(f"{url}/3"), at(f"{server[0].url}?db=4"), at(url, prefix="other:")]
    assert [await round_trip(place) for place in places] == [1, 1, 1, 1]
    found = server[0].keys()
    assert all(key.startswith((b"tango:", b"other:")) for key in found)


async def test_tls_with_our_own_certificate(tmp_path: Path) -> None:
    keys = certificates(tmp_path / "keys")
    port = own_port()
    files = ("--tls-ca-cert-file", f"{keys}/ca.pem", "--tls-cert-file", f"{keys}/server.pem")
    tls = ("--tls-port", str(port), *files, "--tls-key-file", f"{keys}/server.key")
    server, plain = server_on(tmp_path / "redis", *tls)
    server.start()
    try:
        url, ca = f"rediss://127.0.0.1:{port}", keys / "ca.pem"
        right = {"ca": ca, "cert": keys / "client.pem", "cert_key": keys / "client.key"}
        await round_trip(at(url, **right))
        for settings, said in (
            (at(url, **(right | {"ca": keys / "another.pem"})), r"queue\.ca .*not to be trusted"),
            (at(url), r"queue\.ca .*not to be trusted"),
            (at(url, ca=ca), r"queue\.cert"),
        ):
            queue = Queue(settings)
            with pytest.raises(QueueRefused, match=said):
                await queue.open()
            await queue.close()
        with pytest.raises(ConfigError, match=r"queue\.ca \(TANGO_QUEUE_CA\).*No such file"):
            Queue(at(url, ca=keys / "missing.pem"))
        with pytest.raises(ConfigError, match=r"queue\.cert"):
            Queue(at(url, cert=ca))
        with pytest.raises(ConfigError, match="not rediss"):
            Queue(at(f"redis://127.0.0.1:{plain}", ca=ca))
    finally:
        server.kill()


async def test_a_cluster_is_refused_as_what_it_is(tmp_path: Path) -> None:
    server, port = server_on(tmp_path / "redis", "--cluster-enabled", "yes", "--cluster-port", str(own_port()))
    server.start()
    queue = Queue(at(f"redis://127.0.0.1:{port}"))
    with pytest.raises(ConfigError, match="a Redis Cluster cannot be used"):
        await queue.open()
    await queue.close()
    server.kill()


@pytest.mark.parametrize(
    "url",
    [
        "localhost", "http://h", "redis://h:port", "redis+sentinel://h", "redis+sentinel:///tango", "redis+sentinel://h/t/x",
        "x+sentinel://h/tango", "redis+sentinel://h:port/tango",
    ],
)  # fmt: skip
def test_a_wrong_url_is_said_to_be_that(url: str) -> None:
    with pytest.raises(ConfigError, match=r"queue\.url \(TANGO_REDIS_URL\): "):
        options(at(url).queue)


def test_secrets_are_not_shown() -> None:
    settings = at("redis://u:s3cret@h", password="s3cret", sentinel_password="s3cret")
    assert "s3cret" not in str(config.show(settings))
    assert msgspec.to_builtins(settings.queue)["password"] == "s3cret"


async def test_a_server_that_is_away_is_unavailable_and_no_setting_is_blamed() -> None:
    queue = Queue(at(f"redis://127.0.0.1:{own_port()}"))
    with pytest.raises(QueueUnavailable) as caught:
        await queue.open()
    assert not isinstance(caught.value, QueueRefused)
    await queue.close()
