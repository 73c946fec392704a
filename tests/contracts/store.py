"""What every courselab store must do. A store's own test file subclasses this and gives a `store` fixture."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from tango_async.errors import BadName, NotFound, StoreError
from tango_async.files.base import FileStore, Pin, StoredFile

LAB = "test-lab"
FIRST, SECOND = b"first\n", b"second, longer\n"


def md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()


async def body_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def broken_body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    raise ConnectionResetError


async def put(store: FileStore, name: str, body: bytes) -> bool:
    return await store.put(LAB, name, body_of(body))


async def put_output(store: FileStore, ref: str, lab: str, name: str, body: bytes) -> None:
    await store.put_output(ref, body)
    await store.show_output(ref, lab, name)


async def read(store: FileStore, pin: Pin) -> dict[str, bytes]:
    return {f.name: b"".join([c async for c in f.chunks()]) for f in store.inputs(pin.id, pin.files)}


async def content(stored: StoredFile) -> bytes:
    whole = b"".join([c async for c in stored.read()])
    assert stored.path is None or stored.path.read_bytes() == whole
    return whole


@pytest.fixture
async def lab(store: FileStore) -> str:
    await store.open_lab(LAB)
    return LAB


class StoreContract:
    CLOCK_S = 0.02
    """As long as the clock that stamps the store's files may stand still."""

    SHOWS_OUTPUTS = True
    """Whether feedbacks are shown as Tango's `output/<name>`."""

    async def test_a_lab_is_made_when_it_is_opened_first(self, store: FileStore) -> None:
        assert await store.open_lab(LAB) == (True, {})
        assert await store.open_lab(LAB) == (False, {})

    async def test_open_tells_the_md5_of_every_upload_and_of_nothing_else(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)
        await put(store, "é", SECOND)
        await put_output(store, "1-1", lab, "out.txt", b"feedback")
        assert await store.open_lab(lab) == (False, {"a": md5(FIRST), "é": md5(SECOND)})

    async def test_the_same_content_again_changes_nothing(self, store: FileStore, lab: str) -> None:
        assert await put(store, "a", FIRST) is True
        assert await put(store, "a", FIRST) is False
        assert await put(store, "a", SECOND) is True
        assert await put(store, "a", FIRST) is True

    async def test_empty_and_many_chunked_bodies_are_whole(self, store: FileStore, lab: str) -> None:
        big = [bytes([n]) * 300_000 for n in range(12)]
        await store.put(lab, "empty", body_of())
        await store.put(lab, "big", body_of(*big))
        pin = await store.pin(lab, [("empty", "empty"), ("big", "big")])
        assert await read(store, pin) == {"empty": b"", "big": b"".join(big)}

    async def test_a_lab_must_be_opened_before_anything_is_put_or_pinned(self, store: FileStore) -> None:
        with pytest.raises(NotFound, match="Courselab not found"):
            await put(store, "a", FIRST)
        with pytest.raises(NotFound, match="Courselab not found"):
            await store.pin(LAB, [("a", "a")])

    async def test_an_upload_that_breaks_off_leaves_the_old_file(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)
        with pytest.raises(ConnectionResetError):
            await store.put(lab, "a", broken_body(b"x" * 3_000_000))
        assert await store.open_lab(lab) == (False, {"a": md5(FIRST)})

    async def test_of_two_uploads_at_once_one_stands_whole(self, store: FileStore, lab: str) -> None:
        bodies = [bytes([n]) * 2_000_000 for n in range(4)]
        halves = [(b[:1_000_000], b[1_000_000:]) for b in bodies]
        await asyncio.gather(*(store.put(lab, "a", body_of(*h)) for h in halves))
        pin = await store.pin(lab, [("a", "a")])
        assert (await read(store, pin))["a"] in bodies

    async def test_a_pin_keeps_the_files_as_they_stood(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)
        pin = await store.pin(lab, [("a", "Makefile"), ("a", "copy")])
        await put(store, "a", SECOND)
        assert await read(store, pin) == {"Makefile": FIRST, "copy": FIRST}
        assert [(f.local, f.dest, f.size, f.md5) for f in pin.files] == [
            ("a", "Makefile", len(FIRST), md5(FIRST)),
            ("a", "copy", len(FIRST), md5(FIRST)),
        ]

    async def test_pins_and_uploads_at_once_never_mix(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)

        async def upload() -> None:
            for n in range(20):
                await put(store, "a", SECOND if n % 2 else FIRST)

        async def pin() -> None:
            for _ in range(20):
                held = await store.pin(lab, [("a", "a")])
                got = (await read(store, held))["a"]
                assert (got, held.files[0].md5) in [(FIRST, md5(FIRST)), (SECOND, md5(SECOND))]

        await asyncio.gather(upload(), pin(), pin())

    async def test_every_missing_file_is_named(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)
        with pytest.raises(NotFound) as e:
            await store.pin(lab, [("a", "a"), ("b", "b"), ("output", "c")])
        assert str(e.value) == "Input file not found: b\nInput file not found: output"

    async def test_a_pin_can_be_let_go_twice(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)
        pin = await store.pin(lab, [("a", "a")])
        await store.unpin(pin.id)
        await store.unpin(pin.id)
        with pytest.raises(StoreError):
            await read(store, pin)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\0", ".tango", "x" * 256, "\udcff"]
    )
    async def test_no_name_leads_out_of_the_store(self, store: FileStore, lab: str, name: str) -> None:
        with pytest.raises(BadName):
            await put(store, name, FIRST)
        with pytest.raises(BadName):
            await store.pin(lab, [(name, "x")])
        with pytest.raises(BadName):
            await store.open_lab(name)
        with pytest.raises(BadName):
            await put_output(store, "1-1", lab, name, b"")
        with pytest.raises(BadName):
            await store.output(name)
        with pytest.raises(BadName):
            await store.unpin(f"{name}/../../mark")

    async def test_an_upload_may_not_be_called_output(self, store: FileStore, lab: str) -> None:
        with pytest.raises(BadName, match="output"):
            await put(store, "output", FIRST)

    async def test_an_output_is_kept_until_it_is_dropped(self, store: FileStore, lab: str) -> None:
        await put_output(store, "1-1", lab, "out.txt", FIRST)
        await put_output(store, "2-1", lab, "out.txt", SECOND)
        assert await content(await store.output("1-1")) == FIRST
        await store.drop_output("1-1")
        await store.drop_output("1-1")
        with pytest.raises(NotFound):
            await store.output("1-1")
        assert await content(await store.output("2-1")) == SECOND

    async def test_an_output_may_be_stored_twice(self, store: FileStore) -> None:
        await store.put_output("1-1", FIRST)
        await store.put_output("1-1", FIRST)
        assert await content(await store.output("1-1")) == FIRST

    async def test_showing_an_output_never_fails(self, store: FileStore, lab: str) -> None:
        await store.show_output("no-such", lab, "out.txt")
        await store.put_output("1-1", FIRST)
        await store.show_output("1-1", "test-never-opened", "out.txt")

    async def test_an_image_is_known_by_its_content(self, store: FileStore) -> None:
        ref = await store.put_image(body_of(FIRST, SECOND))
        assert ref == md5(FIRST + SECOND)
        assert await store.put_image(body_of(FIRST + SECOND)) == ref
        assert await content(await store.image(ref)) == FIRST + SECOND
        with pytest.raises(NotFound):
            await store.image(md5(b""))

    async def test_a_sweep_removes_what_is_old_and_nobodys(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)
        mine, strays = await store.pin(lab, [("a", "a")]), await store.pin(lab, [("a", "a")])
        assert await store.sweep({mine.id}, age_s=3600) == 0
        assert await store.sweep({mine.id}, age_s=-2) == 1
        assert await read(store, mine) == {"a": FIRST}
        with pytest.raises(StoreError):
            await read(store, strays)

    async def test_old_feedbacks_are_told_by_their_references(self, store: FileStore) -> None:
        await store.put_output("1.1.success", FIRST)
        assert await store.old_outputs(age_s=3600) == []
        assert await store.old_outputs(age_s=-2) == ["1.1.success"]

    async def test_what_nobody_used_goes_and_what_a_job_has_pinned_stays_its(self, store: FileStore, lab: str) -> None:
        await put(store, "a", FIRST)
        pin = await store.pin(lab, [("a", "a")])
        assert await store.trim_uploads([lab], unused_s=3600, most_bytes=None, spare_s=0) == (0, 0)
        assert await store.trim_uploads([lab], unused_s=-2, most_bytes=None, spare_s=3600) == (0, 0)
        assert await store.trim_uploads([lab], unused_s=-2, most_bytes=None, spare_s=-2) == (1, len(FIRST))
        assert await store.open_lab(lab) == (False, {})
        assert await read(store, pin) == {"a": FIRST}

    @pytest.mark.parametrize("use", ["pin", "unpin", "put the same", "put another"])
    async def test_too_many_bytes_go_by_their_last_use(self, store: FileStore, lab: str, use: str) -> None:
        for name in ("a", "b"):
            await put(store, name, FIRST)
        await asyncio.sleep(self.CLOCK_S)
        await put(store, "c", FIRST)
        if use in ("pin", "unpin"):
            pin = await store.pin(lab, [("a", "a")])
            if use == "unpin":
                await store.unpin(pin.id)
        else:
            await put(store, "a", FIRST if use == "put the same" else FIRST[::-1])
        most = 2 * len(FIRST)
        assert await store.trim_uploads([lab], unused_s=None, most_bytes=most, spare_s=-2) == (1, len(FIRST))
        assert await store.trim_uploads([lab], unused_s=None, most_bytes=most, spare_s=-2) == (0, 0)
        assert (await store.open_lab(lab))[1].keys() == {"a", "c"}

    async def test_bytes_are_those_of_all_labs_together(self, store: FileStore, lab: str) -> None:
        await store.open_lab("test-other")
        await put(store, "a", FIRST)
        await store.put("test-other", "b", body_of(FIRST))
        assert sorted(await store.labs()) == [lab, "test-other"]
        assert (await store.trim_uploads(await store.labs(), unused_s=None, most_bytes=0, spare_s=-2)).files == 2
        assert (await store.trim_uploads(["no-such"], unused_s=None, most_bytes=0, spare_s=-2)).files == 0

    async def test_a_trim_beside_uploads_and_pins_takes_no_new_file(self, store: FileStore, lab: str) -> None:
        async def trim() -> None:
            for _ in range(30):
                await store.trim_uploads([lab], unused_s=0.0, most_bytes=None, spare_s=0.0)

        async def upload() -> None:
            for n in range(30):
                body = bytes([n]) * 1000
                await put(store, "a", body)
                try:
                    pin = await store.pin(lab, [("a", "a")])
                except NotFound:
                    continue  # it was unused for longer than nothing
                assert len((await read(store, pin))["a"]) == 1000

        await asyncio.gather(trim(), upload())
        await put(store, "a", FIRST)
        assert (await store.trim_uploads([lab], unused_s=3600, most_bytes=0, spare_s=3600)).files == 0
        assert (await store.open_lab(lab))[1] == {"a": md5(FIRST)}

    async def test_sizes_of_feedbacks(self, store: FileStore) -> None:
        await store.put_output("1.1.success", FIRST)
        assert await store.output_sizes(["1.1.success", "2.1.success"]) == [len(FIRST), 0]

    async def test_a_submitters_files_are_erased_and_nobody_elses(self, store: FileStore, lab: str) -> None:
        mine = ["a@x.edu_1_hand in.c", "a@x.edu_12_m.tar", "copy of (a@x.edu_1_f)"]
        others = ["aa@x.edu_1_h.c", "b_a@x.edu_1_h.c", "b-a@x.edu_1", "a@x.edu", "A@x.edu_1", "a@x.educ_1", "Makefile"]
        for name in mine + others:
            await put(store, name, FIRST)
        await put_output(store, "7.1.success", lab, "a@x.edu_1_hw_autograde.txt", FIRST)
        await put_output(store, "70.1.success", lab, "b@x.edu_1_hw_autograde.txt", SECOND)
        await store.put_output("7.2.timeout", b"of a holder that was lost")
        assert (await store.erase("a@x.edu", [lab], {7})).files == len(mine) + 2 + self.SHOWS_OUTPUTS
        assert (await store.erase("a@x.edu", [lab, "no-such"], {7})).files == 0
        assert (await store.open_lab(lab))[1].keys() == set(others)
        assert await content(await store.output("70.1.success")) == SECOND
        with pytest.raises(NotFound):
            await store.output("7.1.success")

    async def test_the_mark_only_rises(self, store: FileStore) -> None:
        assert await store.raise_mark(0) == 0
        assert await store.raise_mark(1000) == 1000
        assert await store.raise_mark(7) == 1000
        assert max(await asyncio.gather(*(store.raise_mark(2000 + n) for n in range(20)))) == 2019
        assert await store.raise_mark(0) == 2019
