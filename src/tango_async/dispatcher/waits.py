"""Waiting for the first of several things."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from ..errors import QueueUnavailable
from ..queue.bells import Bells


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Returns when one of them is there, and ends the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def either(wait: Coroutine[Any, Any, Any], stop: asyncio.Event) -> None:
    """Returns when either is there."""
    await first_of(wait, stop.wait())


async def wake_on(event: asyncio.Event, bells: Bells) -> None:
    """Again and again, until cancelled: the listener may be about to listen when it is woken."""
    await event.wait()
    while True:
        with suppress(QueueUnavailable):
            await bells.wake()
        await asyncio.sleep(0.05)


async def end(waker: asyncio.Task[None]) -> None:
    """Not only told to end: a connection that it made later on nobody would close."""
    waker.cancel()
    await asyncio.wait([waker])
