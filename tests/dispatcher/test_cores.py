"""How a host's cores are divided and given to quiet jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tango_async.config import load
from tango_async.dispatcher import cores, quiet
from tango_async.dispatcher.cores import Cores, listed, numbers
from tango_async.errors import ConfigError, MachineLost
from tango_async.machine import Machine, MachineSpec, Usage


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of four cores."""
    online = tmp_path / "online"
    online.write_text("0-3\n")
    monkeypatch.setattr(cores, "ONLINE", online)


@pytest.mark.usefixtures("host")
def test_quiet_cores_are_given_to_one_at_a_time() -> None:
    found = Cores("2-3")
    assert (found.ordinary, found.capacity, found.turns.free) == ("0,1", 2, 2)
    with found.pick(1) as first, found.pick(1) as second:
        assert (first, second) == ("2", "3")
    with found.pick(7) as both:
        assert both == "2,3"


@pytest.mark.usefixtures("host")
def test_cores_of_a_machine_that_was_found_running_are_taken() -> None:
    found = Cores("2-3")
    with found.hold("1,2"), found.hold("0"), found.pick(1) as other:
        assert other == "3"
    with found.pick(1) as first:
        assert first == "2"


@pytest.mark.usefixtures("host")
def test_without_quiet_cores_nothing_is_kept_to_anything() -> None:
    found = Cores("")
    assert (found.ordinary, found.capacity, found.turns.free) == ("", 0, 0)
    found.leave()


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("quiet_cores", ["4", "0-3", "1,9", "3-4"])
def test_a_division_that_the_host_cannot_have_is_refused(quiet_cores: str) -> None:
    with pytest.raises(ConfigError, match=r"this host has the cores 0,1,2,3, and one must be left for others"):
        Cores(quiet_cores)


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1,,2", "1;2", "0-99999", " 1"])
def test_what_is_no_list_of_cores_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"quiet_cores"):
        load(environ={"TANGO_DISPATCHER_QUIET_CORES": text})


def test_lists_of_cores_are_read_and_written() -> None:
    assert numbers("0,2-4\n") == {0, 2, 3, 4}
    assert numbers("3-1") == numbers("") == set()
    assert listed({4, 0, 2}) == "0,2,4"


class Meter:
    """A back-end whose counters are given by hand."""

    def __init__(self, *used: Usage | None) -> None:
        self.used = list(used)

    async def usage(self, machine: Machine) -> Usage | None:
        if not self.used:
            raise MachineLost("gone")
        return self.used.pop(0)


def counted(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[float, float]) -> None:
    left = list(pairs)
    monkeypatch.setattr(quiet, "_counted", lambda cores: left.pop(0))


MACHINE = Machine(
    id="m", nonce="n",
    spec=MachineSpec(image="i", network=False, cores=1, memory_bytes=1, processes=1, disk_bytes=1, cpuset="1"),
)  # fmt: skip


async def test_it_is_told_what_a_quiet_job_and_what_others_used(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, (10.0, 1.0), (12.5, 1.25))
    watch = quiet.Watch(Meter(Usage(0.5, 0.0), Usage(2.5, 0.125)), MACHINE)  # type: ignore[arg-type]
    await watch.look()
    assert (await watch.over()).endswith(
        " s the job used 2.00 s and was throttled for 0.125 s, others used 0.50 s, 0.25 s were stolen"
    )


async def test_where_the_counters_go_with_the_machine_the_last_look_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, (10.0, 0.0), (11.0, 0.0), (19.0, 0.0))
    watch = quiet.Watch(Meter(Usage(0.0, 0.0), Usage(1.0, 0.0)), MACHINE)  # type: ignore[arg-type]
    await watch.look()
    await watch.look()
    assert " s the job used 1.00 s and was throttled for 0.000 s, others used 0.00 s," in await watch.over()


async def test_where_nothing_counts_the_job_only_the_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, (10.0, 0.0), (11.0, 0.5))
    watch = quiet.Watch(Meter(None, None), MACHINE)  # type: ignore[arg-type]
    await watch.look()
    said = await watch.over()
    assert said.startswith("Quiet cores 1: in ") and said.endswith(" s they were busy for 1.00 s, 0.50 s were stolen")


def test_the_kernel_counts_each_core() -> None:
    busy_s, stolen_s = quiet._counted({0})
    assert busy_s > 0 and stolen_s >= 0
    assert quiet._counted({9999}) == (0, 0)
