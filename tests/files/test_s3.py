"""The S3 store: the contract of all stores on each S3 server that is here, and what only a bucket has."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
from aiohttp import web

from conftest import absent
from contracts.store import (
    FIRST,
    LAB,
    SECOND,
    StoreContract,
    body_of,
    broken_body,
    content,
    lab,
    md5,
    put,
    read,
)
from support.s3_proxy import S3Proxy, hang_up, proxy_before, slow_down
from support.s3_server import ACCESS_KEY, BUCKET, S3Server, make_bucket, raw_client, server_kinds, settings_for
from tango_async.config import S3, Settings
from tango_async.errors import BadName, ConfigError, StoreError, StoreUnavailable
from tango_async.files import s3_bucket, s3_keys
from tango_async.files.s3 import S3Store

__all__ = ["lab"]

PART = 5 << 20
DAYS_AGO = -2 - S3().unfinished_s


@pytest.fixture(scope="module", params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if request.param not in server_kinds():
        absent(f"{request.param} is not installed")
    server = S3Server(request.param, tmp_path_factory.mktemp("s3"))
    server.start()
    asyncio.run(make_bucket(server))
    yield server
    server.kill()


@pytest.fixture
def s3(server: S3Server) -> Settings:
    return settings_for(server, uuid4().hex, part_bytes=PART)


@pytest.fixture
async def store(s3: Settings) -> AsyncIterator[S3Store]:
    store = await opened(s3)
    yield store
    await store.close()


@pytest.fixture
async def proxy(server: S3Server) -> AsyncIterator[S3Proxy]:
    async with proxy_before(server) as proxy:
        yield proxy


@pytest.fixture
async def proxied(server: S3Server, proxy: S3Proxy) -> AsyncIterator[S3Store]:
    store = await opened(settings_for(server, uuid4().hex, endpoint=proxy.endpoint))
    yield store
    await store.close()


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a store that is opened after it, and a server that does not come back however often it is asked."""
    monkeypatch.setattr(s3_bucket, "TRIES", 2)


async def opened(settings: Settings) -> S3Store:
    store = await S3Store.connect(settings)
    try:
        await store.open()
    except BaseException:
        await store.close()
        raise
    return store


async def objects(store: S3Store, begin: str = "") -> list[str]:
    return [entry.key for entry in await store._bucket.all(begin)]


async def on_its_way(store: S3Store) -> list[str]:
    return [*await objects(store, "tmp/"), *(key for key, _, _ in await store._bucket.unfinished())]


def big(parts: float) -> list[bytes]:
    """A body in chunks that fit into no part."""
    size = int(parts * PART)
    whole = bytes(itertools.islice(itertools.cycle(range(251)), 251 * 300))
    return [whole[: min(len(whole), size - start)] for start in range(0, size, len(whole))]


class TestS3Store(StoreContract):
    CLOCK_S = 1.1
    SHOWS_OUTPUTS = False


@pytest.mark.parametrize("parts", [0.999999, 1, 2, 3.3])
async def test_a_body_of_any_size_is_stored_whole_and_leaves_nothing_else(
    store: S3Store, lab: str, parts: float
) -> None:
    chunks = big(parts)
    assert await store.put(lab, "big", body_of(*chunks)) is True
    assert await store.put(lab, "big", body_of(*chunks)) is False
    assert (await store.open_lab(lab))[1] == {"big": md5(b"".join(chunks))}
    assert await read(store, await store.pin(lab, [("big", "x")])) == {"x": b"".join(chunks)}
    assert await on_its_way(store) == []


async def test_an_image_of_many_parts_is_whole(store: S3Store) -> None:
    chunks = big(2.5)
    ref = await store.put_image(body_of(*chunks))
    assert await content(await store.image(ref)) == b"".join(chunks)
    assert await on_its_way(store) == []


async def test_large_objects_are_copied_in_parts(store: S3Store, lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_bucket, "COPY_PART", PART)
    chunks = big(3.5)
    await store.put(lab, "big", body_of(*chunks))
    pin = await store.pin(lab, [("big", "x")])
    await put(store, "big", FIRST)
    assert await read(store, pin) == {"x": b"".join(chunks)}


async def test_nothing_is_left_of_an_upload_that_broke_off(store: S3Store, lab: str) -> None:
    with pytest.raises(ConnectionResetError):
        await store.put(lab, "a", broken_body(*big(2.5)))
    assert await on_its_way(store) == []
    assert await objects(store, "files/") == []


async def test_nothing_is_left_of_an_upload_that_was_cancelled(store: S3Store, lab: str) -> None:
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for chunk in big(2.5):
            yield chunk
        started.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(store.put(lab, "a", endless()))
    await started.wait()
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)
    assert await on_its_way(store) == []


async def test_what_was_on_its_way_for_days_is_swept_and_nothing_younger(store: S3Store, server: S3Server) -> None:
    await store._bucket.put("tmp/left")
    async with raw_client(server) as client:
        at = store._bucket._at("tmp/begun")
        begun = await client.create_multipart_upload(**at)
        await client.upload_part(**at, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * PART)
    if server.kind == "moto":  # says of each of them that it was begun in 2010
        assert await on_its_way(store) == ["tmp/left", "tmp/begun"]
    else:
        assert await store.sweep(set(), age_s=-2) == 0
    assert await store.sweep(set(), age_s=DAYS_AGO) == 2
    assert await on_its_way(store) == []


async def test_how_long_an_upload_may_be_on_its_way_is_a_setting(server: S3Server) -> None:
    store = await opened(settings_for(server, uuid4().hex, unfinished_s=1.0))
    await store._bucket.put("tmp/left")
    assert await store.sweep(set(), age_s=-4) == 1
    await store.close()


async def test_of_an_upload_that_was_replaced_one_object_stays(store: S3Store, lab: str) -> None:
    for body in (FIRST, SECOND, FIRST):
        await put(store, "a", body)
    [key] = await objects(store, "files/")
    assert key.endswith(md5(FIRST))


async def test_what_a_killed_server_left_of_a_replaced_upload_is_not_seen_and_goes(store: S3Store, lab: str) -> None:
    await put(store, "a", FIRST)
    await store._bucket.put(s3_keys.Upload(2, md5(SECOND), "a", lab).key, SECOND)
    assert (await store.open_lab(lab))[1] == {"a": md5(SECOND)}
    assert await read(store, await store.pin(lab, [("a", "a")])) == {"a": SECOND}
    await store.trim_uploads([lab], unused_s=3600, most_bytes=None, spare_s=3600)
    assert len(await objects(store, "files/")) == 1


ODD = [
    *(
        "é",
        "e\u0301",
        "a b",
        " a ",
        "a%20b",
        "100%",
        "%5C",
        "a+b",
        "...",
        "~",
        "#?x",
        "*",
        ".hidden",
        "'\"<>&",
        "x" * 255,
    ),
    *("..\\..\\..\\marks\\1", "a\\b", "[x]{y}|z^`", "\ufffe\uffff", "𝕏", "a:b;c,d=e"),
]


async def test_names_stay_what_they_are_and_lead_nowhere(store: S3Store) -> None:
    odd_lab = "key-a%\\..\\b"
    await store.open_lab(odd_lab)
    for name in ODD:
        await store.put(odd_lab, name, body_of(name.encode()))
    assert (await store.open_lab(odd_lab))[1] == {name: md5(name.encode()) for name in ODD}
    assert await store.labs() == [odd_lab]
    pin = await store.pin(odd_lab, [(name, name) for name in ODD])
    assert await read(store, pin) == {name: name.encode() for name in ODD}
    assert {key.split("/")[0] for key in await objects(store)} == {"labs", "files", "used", "pins"}
    removed = await store.trim_uploads([odd_lab], unused_s=-2, most_bytes=None, spare_s=-2)
    assert removed.files == len(ODD)
    assert await objects(store, "files/") == await objects(store, "used/") == []


async def test_a_name_that_makes_too_long_a_key_is_refused(store: S3Store, lab: str) -> None:
    with pytest.raises(BadName, match="too long"):
        await put(store, "\\" * 255, FIRST)


async def test_prefixes_of_names_are_other_names(store: S3Store, lab: str) -> None:
    await put(store, "ab", SECOND)
    await put(store, "a", FIRST)
    await store.open_lab("test-lab2")
    await store.put("test-lab2", "a", body_of(SECOND))
    assert (await store.open_lab(lab))[1] == {"a": md5(FIRST), "ab": md5(SECOND)}
    assert await read(store, await store.pin(lab, [("a", "a")])) == {"a": FIRST}


async def test_more_objects_than_one_listing_holds(store: S3Store) -> None:
    refs = [f"{n}.1.success" for n in range(1001)]
    await s3_bucket.each(lambda ref: store.put_output(ref, b"x"), refs)
    assert sorted(await store.old_outputs(age_s=-2)) == sorted(refs)


async def test_several_servers_share_the_mark(s3: Settings, store: S3Store) -> None:
    others = [await opened(s3) for _ in range(3)]
    await asyncio.gather(*(s.raise_mark(n) for n in range(10) for s in others))
    assert await store.raise_mark(0) == 9
    for other in others:
        await other.close()


async def test_a_file_changed_behind_the_service_does_not_reach_a_job(store: S3Store, lab: str) -> None:
    await put(store, "a", FIRST)
    pin = await store.pin(lab, [("a", "a")])
    [key] = await objects(store, "pins/")
    await store._bucket.put(key, FIRST.upper())
    with pytest.raises(StoreError, match="not what it was"):
        await read(store, pin)


async def test_what_is_stored_is_encrypted_as_asked(server: S3Server) -> None:
    if server.kind != "moto":
        pytest.skip("this server has no keys to encrypt with")
    settings = settings_for(server, uuid4().hex, encryption="aws:kms", kms_key="the-key", part_bytes=PART)
    store = await opened(settings)
    await store.open_lab(LAB)
    await put(store, "small", FIRST)
    await store.put(LAB, "large", body_of(*big(2)))
    await store.pin(LAB, [("large", "x")])
    async with raw_client(server) as client:
        for key in await objects(store):
            head = await client.head_object(**store._bucket._at(key))
            assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "the-key")
    await store.close()


async def test_a_bucket_may_be_a_part_of_the_hosts_name(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if server.kind != "moto":
        pytest.skip("this server has no domain")
    ask = socket.getaddrinfo
    local = f"{BUCKET}.localhost"
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **named: ask("127.0.0.1" if host == local else host, *more, **named)
    )
    host = server.endpoint.replace("127.0.0.1", "localhost")
    store = await opened(settings_for(server, uuid4().hex, endpoint=host, path_style=False))
    await store.open_lab(LAB)
    await put(store, "a", FIRST)
    assert (await store.open_lab(LAB))[1] == {"a": md5(FIRST)}
    await store.close()


# -- faults ----------------------------------------------------------------------------------------


async def refused(server: S3Server, **changes: str) -> str:
    with pytest.raises(ConfigError) as e:
        await opened(settings_for(server, "x", **changes))
    return str(e.value)


async def test_a_wrong_setting_is_named_at_start(server: S3Server) -> None:
    assert "store.url: there is no bucket no-such-bucket" in await refused(server, bucket="no-such-bucket")
    if server.kind == "seaweedfs":  # the other one lets anybody in
        assert "s3.secret_key" in await refused(server, secret_key="wrong")
        assert "s3.access_key" in await refused(server, access_key="wrong")
        assert "forbidden" in await refused(server, access_key="stranger")


@pytest.mark.parametrize(
    ("status", "code", "named"),
    [
        (301, "PermanentRedirect", "s3.region"),
        (400, "AuthorizationHeaderMalformed", "s3.region"),
        (400, "ExpiredToken", "s3.session_token"),
        (403, "RequestTimeTooSkewed", "clock"),
    ],
)
async def test_what_amazon_says_of_a_wrong_setting_is_named(
    server: S3Server, proxy: S3Proxy, status: int, code: str, named: str
) -> None:
    async def says(request: web.Request) -> web.StreamResponse:
        text = f"<Error><Code>{code}</Code></Error>"
        headers = {"x-amz-bucket-region": "eu-north-1"}
        return web.Response(status=status, text=text, headers=headers, content_type="application/xml")

    proxy.fault = says
    assert named in await refused(server, endpoint=proxy.endpoint)


async def test_without_credentials_it_says_where_they_may_be(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    assert "AWS_ACCESS_KEY_ID" in await refused(server, access_key="", secret_key="")


async def test_credentials_may_be_in_the_usual_variables(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(server, uuid4().hex)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", settings.s3.secret_key)
    store = await opened(settings_for(server, uuid4().hex, access_key="", secret_key=""))
    await store.check()
    await store.close()


async def test_a_server_that_is_away_is_named(few_tries: None, server: S3Server) -> None:
    with pytest.raises(StoreUnavailable, match=r"s3\.endpoint: http://127\.0\.0\.1:9 does not answer"):
        await opened(settings_for(server, "x", endpoint="http://127.0.0.1:9"))


async def test_what_is_said_of_a_fault_holds_no_name_of_a_courselab(
    few_tries: None, server: S3Server, proxy: S3Proxy
) -> None:
    store = await opened(settings_for(server, uuid4().hex, endpoint=proxy.endpoint))
    proxy.fault = hang_up
    with pytest.raises(StoreUnavailable) as e:
        await store.open_lab("secretkey-lab")
    assert "secretkey" not in str(e.value)
    await store.close()


async def test_a_feedback_that_a_broken_connection_did_not_bring_is_away_and_not_gone(
    few_tries: None, server: S3Server, proxy: S3Proxy
) -> None:
    store = await opened(settings_for(server, uuid4().hex, endpoint=proxy.endpoint))
    await store.put_output("1.1.success", b"said\n")
    proxy.fault = hang_up
    with pytest.raises(StoreUnavailable):
        await store.output("1.1.success")
    proxy.fault = None
    assert (await store.output("1.1.success")).size == 5
    await store.close()


async def test_without_the_right_to_write_it_does_not_start(server: S3Server, proxy: S3Proxy) -> None:
    async def read_only(request: web.Request) -> web.StreamResponse | None:
        text = "<Error><Code>AccessDenied</Code></Error>"
        return web.Response(status=403, text=text, content_type="application/xml") if request.method == "PUT" else None

    proxy.fault = read_only
    assert "forbidden" in await refused(server, endpoint=proxy.endpoint)


async def test_a_busy_server_is_asked_again(proxied: S3Store, proxy: S3Proxy) -> None:
    busy = 2

    async def now_and_then(request: web.Request) -> web.StreamResponse | None:
        nonlocal busy
        busy -= 1
        return await slow_down(request) if busy >= 0 else None

    proxy.fault = now_and_then
    await proxied.put_output("1.1.success", FIRST)
    assert await content(await proxied.output("1.1.success")) == FIRST
    proxy.fault = slow_down
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        await proxied.labs()


async def test_a_server_that_hangs_is_not_waited_for(few_tries: None, server: S3Server, proxy: S3Proxy) -> None:
    async def hang(request: web.Request) -> web.StreamResponse | None:
        await asyncio.sleep(600)
        return None

    store = await opened(settings_for(server, uuid4().hex, endpoint=proxy.endpoint, timeout_s=2.0))
    proxy.fault = hang
    with pytest.raises(StoreUnavailable):
        async with asyncio.timeout(60):
            await store.labs()
    await store.close()


async def test_a_body_that_breaks_off_is_read_on_where_it_broke(proxied: S3Store, proxy: S3Proxy) -> None:
    whole = b"".join(big(0.5))
    await proxied.put_output("1.1.success", whole)
    cut = 0

    async def break_off(request: web.Request) -> web.StreamResponse | None:
        nonlocal cut
        first, _, last = request.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if request.method != "GET" or not last or int(first) < 1 << 18 or cut >= 3:
            return None
        cut += 1
        response = web.StreamResponse(status=206, headers={"Content-Length": str(int(last) + 1 - int(first))})
        await response.prepare(request)
        await response.write(whole[int(first) : int(first) + 300_000])
        assert request.transport is not None
        request.transport.abort()
        return response

    proxy.fault = break_off
    assert await content(await proxied.output("1.1.success")) == whole
    assert cut == 3


async def test_an_upload_fails_clearly_while_the_server_is_away_and_works_when_it_is_back(
    few_tries: None, proxied: S3Store, proxy: S3Proxy
) -> None:
    await proxied.open_lab(LAB)
    await put(proxied, "a", FIRST)
    proxy.fault = slow_down
    with pytest.raises(StoreUnavailable):
        await put(proxied, "a", SECOND)
    with pytest.raises(StoreUnavailable):
        await proxied.check()
    proxy.fault = None
    assert (await proxied.open_lab(LAB))[1] == {"a": md5(FIRST)}
    assert await put(proxied, "a", SECOND) is True
