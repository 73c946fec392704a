"""What backlog is reason for another machine, and what flapping is not."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tango_async.dispatcher.scale import Backlog


def seen(after_s: float, *looks: tuple[float, int]) -> int:
    """As many as stood after the last look."""
    backlog = Backlog(after_s)
    for at, waiting in looks:
        backlog.saw(waiting, at)
    return backlog.standing(looks[-1][0])


def steady(waiting: int, looks: Iterable[int]) -> list[tuple[float, int]]:
    return [(float(at), waiting) for at in looks]


def test_what_has_not_been_seen_for_long_enough_is_none() -> None:
    assert seen(30, *steady(50, range(30))) == 0
    assert seen(30, *steady(50, range(31))) == 50


def test_as_many_stand_as_waited_all_the_time() -> None:
    assert seen(10, (0, 9), (4, 3), (5, 40), (9, 20), (10, 30)) == 3
    assert seen(10, (0, 9), (4, 3), (5, 40), (9, 20), (14, 30)) == 3
    assert seen(10, (0, 9), (4, 3), (5, 40), (9, 20), (15, 30)) == 20


def test_a_burst_that_is_worked_off_in_time_is_none() -> None:
    assert seen(30, *[(float(at), max(0, 50 - 2 * at)) for at in range(30)], (30.0, 8)) == 0


def test_waves_count_as_their_ebbs() -> None:
    looks = [(float(at), at % 7) for at in range(100)]
    assert seen(30, *looks) == 0
    assert seen(30, *[(at, waiting + 2) for at, waiting in looks]) == 2


def test_what_was_not_looked_at_for_a_while_stands_only_later() -> None:
    long_ago = steady(50, range(60))
    assert seen(30, *long_ago, (200, 50)) == 0
    assert seen(30, *long_ago, *steady(50, range(200, 231))) == 50


@pytest.mark.parametrize("waiting", [0, 1, 7])
def test_without_a_time_it_is_what_waits(waiting: int) -> None:
    assert seen(0, (0, 99), (1, waiting)) == waiting
