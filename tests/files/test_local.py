"""The local store: the contract of all stores, and what only a directory has."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from contracts.store import FIRST, LAB, SECOND, StoreContract, body_of, broken_body, lab, put, put_output, read
from tango_async.config import Store
from tango_async.errors import BadName, StoreError, StoreFull
from tango_async.files import local
from tango_async.files.local import LocalStore

__all__ = ["lab"]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(Store(data_dir=tmp_path))
    yield store
    await store.close()


@pytest.fixture
def labs(tmp_path: Path) -> Path:
    return tmp_path / "courselabs"


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def left(labs: Path) -> list[str]:
    return names(labs / ".tango" / "tmp")


class TestLocalStore(StoreContract):
    pass


async def test_the_layout_is_tangos(store: LocalStore, lab: str, labs: Path) -> None:
    await put(store, "Makefile", FIRST)
    await put_output(store, "1-1", lab, "out.txt", SECOND)
    assert (labs / lab / "Makefile").read_bytes() == FIRST
    assert (labs / lab / "output" / "out.txt").read_bytes() == SECOND


@pytest.mark.parametrize("when", ["it is linked", "what shows it was looked for"])
async def test_what_is_dropped_while_it_is_being_shown_is_not_shown(
    store: LocalStore, lab: str, labs: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    await store.put_output("1.1.success", FIRST)
    stored, shown = labs / ".tango" / "outputs" / "1.1.success", labs / lab / "output" / "out.txt"
    link, take_away = local.link_or_copy, store._take_away
    if when == "it is linked":

        def linked(source: Path, to: Path) -> None:
            link(source, to)
            store._drop_output(stored, shown)

        monkeypatch.setattr(local, "link_or_copy", linked)
        await store.show_output("1.1.success", lab, "out.txt")
    else:

        def taken_away(path: Path, is_meant: Callable[[Path], bool]) -> bool:
            taken = take_away(path, is_meant)
            if stored.exists():
                store._show(stored, shown)
            return taken

        monkeypatch.setattr(store, "_take_away", taken_away)
        await store.drop_output("1.1.success", lab, "out.txt")
    assert not shown.exists() and not stored.exists() and left(labs) == []


async def test_nothing_is_left_of_a_feedback_whose_drop_was_cut_off_and_is_done_again(
    store: LocalStore, lab: str, labs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put_output("1.1.success", FIRST)
    stored, shown = labs / ".tango" / "outputs" / "1.1.success", labs / lab / "output" / "out.txt"
    take_away = store._take_away

    def failing(path: Path, is_meant: Callable[[Path], bool]) -> bool:
        if stored.exists():
            taken = take_away(path, is_meant)
            store._show(stored, shown)
            return taken
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(store, "_take_away", failing)
        with pytest.raises(StoreError):
            await store.drop_output("1.1.success", lab, "out.txt")
    await store.drop_output("1.1.success", lab, "out.txt")
    assert not shown.exists() and not stored.exists() and left(labs) == []


async def test_nothing_is_left_of_an_upload_that_broke_off(store: LocalStore, lab: str, labs: Path) -> None:
    with pytest.raises(ConnectionResetError):
        await store.put(lab, "a", broken_body(b"x" * 3_000_000))
    assert left(labs) == []
    assert names(labs / lab) == ["output"]


async def test_nothing_is_left_of_an_upload_that_was_cancelled(store: LocalStore, lab: str, labs: Path) -> None:
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        started.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(store.put(lab, "a", endless()))
    await started.wait()
    upload.cancel()
    await asyncio.gather(upload, return_exceptions=True)
    assert left(labs) == []


async def test_the_same_output_twice_leaves_no_third_name(store: LocalStore, lab: str, labs: Path) -> None:
    for _ in range(2):
        await put_output(store, "1-1", lab, "out.txt", FIRST)
    assert left(labs) == []
    assert (labs / ".tango/outputs/1-1").stat().st_nlink == 2


async def test_a_feedback_that_cannot_be_shown_is_stored_all_the_same(store: LocalStore, labs: Path) -> None:
    (labs / LAB).write_text("a file where a courselab should be")
    await put_output(store, "1-1", LAB, "out.txt", FIRST)
    assert (await store.output("1-1")).size == len(FIRST)


async def test_a_file_edited_in_place_does_not_reach_a_job_accepted_before(
    store: LocalStore, lab: str, labs: Path
) -> None:
    await put(store, "a", FIRST)
    pin = await store.pin(lab, [("a", "a")])
    (labs / lab / "a").write_bytes(FIRST.upper())
    with pytest.raises(StoreError, match="edited in place"):
        await read(store, pin)


async def test_md5s_follow_files_that_others_put_there(store: LocalStore, lab: str, labs: Path) -> None:
    await put(store, "a", FIRST)
    before = (await store.open_lab(lab))[1]["a"]
    (labs / lab / "a").write_bytes(FIRST.upper())
    (labs / lab / "b").write_bytes(FIRST)
    after = (await store.open_lab(lab))[1]
    assert after["a"] != before
    assert after["b"] == before


async def test_a_symbolic_link_is_pinned_by_what_it_leads_to(store: LocalStore, labs: Path, lab: str) -> None:
    await put(store, "a", FIRST)
    (labs / lab / "b").symlink_to("a")
    pin = await store.pin(lab, [("b", "b")])
    await put(store, "a", SECOND)
    assert await read(store, pin) == {"b": FIRST}


async def test_a_directory_is_neither_replaced_nor_pinned(store: LocalStore, labs: Path, lab: str) -> None:
    (labs / lab / "src").mkdir()
    with pytest.raises(BadName, match="directory"):
        await put(store, "src", FIRST)
    assert left(labs) == []


async def test_a_mark_that_is_no_number_is_an_error_that_says_what_to_do(store: LocalStore, labs: Path) -> None:
    (labs / ".tango/mark").write_text("?")
    with pytest.raises(StoreError, match="last job id"):
        await store.raise_mark(5)


async def test_several_processes_share_the_mark(store: LocalStore, labs: Path) -> None:
    others = [LocalStore(Store(courselabs=labs)) for _ in range(3)]
    await asyncio.gather(*(s.raise_mark(n) for n in range(30) for s in others))
    assert await store.raise_mark(0) == 29


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_is_reported_as_that_and_kept_usable(tiny_disk: Path) -> None:
    store = LocalStore(Store(courselabs=tiny_disk))
    await store.open_lab(LAB)
    await put(store, "a", FIRST)
    with pytest.raises(StoreFull):
        await store.put(LAB, "a", body_of(*[b"x" * 500_000] * 6))
    assert left(tiny_disk) == []
    assert await read(store, await store.pin(LAB, [("a", "a")])) == {"a": FIRST}
    await store.close()


async def test_links_that_run_out_become_copies(tiny_disk: Path, tmp_path: Path) -> None:
    store = LocalStore(Store(courselabs=tiny_disk))
    await store.open_lab(LAB)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(FIRST)
    (tiny_disk / LAB / "a").symlink_to(elsewhere)  # on another file system, so it cannot be linked
    pin = await store.pin(LAB, [("a", "a")])
    elsewhere.unlink()
    assert await read(store, pin) == {"a": FIRST}
    await store.close()


async def test_what_shows_a_feedback_goes_with_it(store: LocalStore, lab: str, labs: Path) -> None:
    await put_output(store, "1.1.success", lab, "out.txt", FIRST)
    await put_output(store, "2.1.success", lab, "out.txt", SECOND)
    await store.drop_output("1.1.success", lab, "out.txt")
    assert (labs / lab / "output" / "out.txt").read_bytes() == SECOND
    await store.drop_output("2.1.success", lab, "out.txt")
    await store.drop_output("2.1.success", lab, "out.txt")
    assert names(labs / lab / "output") == names(labs / ".tango" / "outputs") == left(labs) == []


async def test_a_copy_that_shows_a_feedback_goes_too(store: LocalStore, lab: str, labs: Path) -> None:
    await put_output(store, "1.1.success", lab, "out.txt", FIRST)
    shown = labs / lab / "output" / "out.txt"
    shown.unlink()
    shown.write_bytes(FIRST)
    await store.drop_output("1.1.success", lab, "out.txt")
    assert not shown.exists()


async def test_a_feedback_whose_lab_is_gone_can_be_dropped(store: LocalStore, labs: Path) -> None:
    await put_output(store, "1.1.success", "gone-lab", "out.txt", FIRST)
    (labs / "gone-lab").write_text("a file, by somebody's hand")
    await store.drop_output("1.1.success", "gone-lab", "out.txt")
    assert names(labs / ".tango" / "outputs") == []


async def test_an_upload_that_comes_while_the_old_one_is_taken_away_stays(
    store: LocalStore, lab: str, labs: Path
) -> None:
    await put(store, "a", FIRST)
    path = labs / lab / "a"

    def judge_slowly(judged: Path) -> bool:
        (labs / "new").write_bytes(SECOND)
        (labs / "new").rename(judged)
        return True

    assert store._take_away(path, judge_slowly) is False
    assert path.read_bytes() == SECOND
    assert left(labs) == []


async def test_only_plain_files_of_plain_names_are_trimmed(
    store: LocalStore, lab: str, labs: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(FIRST)
    (labs / lab / "link").symlink_to(tmp_path / "elsewhere")
    (labs / lab / ".tango-note").write_bytes(FIRST)
    (labs / lab / "folder").mkdir()
    (labs / lab / "folder" / "a@x.edu_1_f").write_bytes(FIRST)
    assert (await store.trim_uploads([lab], unused_s=-2, most_bytes=0, spare_s=-2)).files == 0
    assert (await store.erase("a@x.edu", [lab], set())).files == 0
    assert ".tango" not in await store.labs()
    with pytest.raises(BadName):
        await store.trim_uploads([".."], unused_s=-2, most_bytes=0, spare_s=-2)


@pytest.mark.parametrize("ahead_s", [7200, -7200])
async def test_a_host_whose_clock_is_wrong_removes_nothing_young_and_spares_nothing_old(
    store: LocalStore, lab: str, labs: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    right_s = time.time()
    await put(store, "a", FIRST)
    pinned = await store.pin(lab, [("a", "a")])
    monkeypatch.setattr(time, "time", lambda: right_s + ahead_s)
    pinned_here = await store.pin(lab, [("a", "a")])
    await put_output(store, "1.1.success", lab, "out.txt", FIRST)
    for name in ("young", "old"):
        (labs / ".tango/tmp" / name).write_bytes(FIRST)
    os.utime(labs / ".tango/tmp/old", (right_s - 5400, right_s - 5400))
    assert await store.sweep(set(), age_s=3600) == 1
    assert left(labs) == ["young"]
    assert await store.old_outputs(age_s=3600) == []
    assert await store.trim_uploads([lab], unused_s=3600, most_bytes=0, spare_s=3600) == (0, 0)
    monkeypatch.undo()
    assert await store.sweep(set(), age_s=3600) == 0
    assert await read(store, pinned) == await read(store, pinned_here) == {"a": FIRST}


async def test_a_full_disk_can_be_swept(tiny_disk: Path) -> None:
    store = LocalStore(Store(courselabs=tiny_disk))
    stray = tiny_disk / ".tango/tmp/stray"
    with stray.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    assert await store.sweep(set(), age_s=-2) == 1
    await store.close()
