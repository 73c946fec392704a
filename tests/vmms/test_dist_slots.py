"""Whose turn it is on which host: no I/O, so these are hosts by word only."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tango_async.errors import HostUnavailable, ImageNotFound
from tango_async.vmms.dist_slots import Placement


@dataclass
class Word:
    slots: int
    images: dict[str, str] = field(default_factory=lambda: {"a": "1"})
    well: bool = True
    machines: set[str] = field(default_factory=set)


async def test_jobs_go_where_most_is_free_and_then_wait() -> None:
    placement = Placement({"one": Word(1), "two": Word(2)})
    turns = [placement.ask("a", 1) for _ in range(4)]
    assert [turn.result() for turn in turns[:3]] == ["two", "one", "two"]
    assert not turns[3].done() and placement.room("a") == 0
    placement.leave(1, turns[1])
    assert turns[3].result() == "one"


async def test_of_equals_a_job_gets_the_one_where_machines_wait_and_the_next_is_prepared_on_the_other() -> None:
    placement = Placement({"one": Word(1), "two": Word(1, machines={"waits"}), "three": Word(1)})
    assert placement.best("a") == "one"
    assert placement.ask("a", 1).result() == "two"


async def test_a_large_job_keeps_one_host_and_others_pass_it() -> None:
    placement = Placement({"one": Word(2), "two": Word(2)})
    first, second = placement.ask("a", 1), placement.ask("a", 1)
    large, small = placement.ask("a", 2), placement.ask("a", 1)
    assert not large.done() and small.done()
    kept = {"one", "two"} - {small.result()}
    placement.leave(1, next(turn for turn in (first, second) if turn.result() in kept))
    assert {large.result()} == kept


async def test_a_job_larger_than_every_host_runs_alone() -> None:
    placement = Placement({"one": Word(2)})
    small, huge, late = placement.ask("a", 1), placement.ask("a", 8), placement.ask("a", 1)
    assert not huge.done() and not late.done()
    placement.leave(1, small)
    assert huge.result() == "one" and not late.done()
    placement.leave(8, huge)
    assert late.result() == "one" and placement.taken("one") == 1


async def test_a_host_that_is_away_gets_none_and_what_runs_there_still_counts() -> None:
    away = Word(2)
    placement = Placement({"away": away, "there": Word(2)})
    on_away = placement.hold("away", 1)
    away.well = False
    assert placement.slots() == 3 and placement.room("a") == 2
    assert [placement.ask("a", 1).result() for _ in range(2)] == ["there", "there"]
    waits = placement.ask("a", 1)
    away.well = True
    placement.settle()
    assert waits.result() == "away"
    placement.leave(1, on_away)


async def test_one_that_gives_up_makes_way() -> None:
    placement = Placement({"one": Word(1)})
    first, second, third = (placement.ask("a", 1) for _ in range(3))
    placement.leave(1, second)
    placement.leave(1, first)
    assert second.cancelled() and third.result() == "one"


async def test_why_there_is_no_host_is_told() -> None:
    away = Word(1, {"b": "1"}, well=False)
    placement = Placement({"away": away, "there": Word(1)})
    for image, error in (("b", HostUnavailable), ("c", ImageNotFound)):
        turn = placement.ask(image, 1)
        with pytest.raises(error):
            turn.result()
        placement.leave(1, turn)
        with pytest.raises(error):
            placement.best(image)
    assert (placement.taken("away"), placement.taken("there")) == (0, 0)
