"""How what a container says comes back, and how its end is told: one Protocol, two ways.

`host` (host_outputs.py): through a pipe and a process of ours beside the container, where engine and
dispatcher see the same files. The engine has no part in it, so that nothing is lost when it dies.
`engine` (engine_outputs.py): through the engine's streams and its log, where it is elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import VmmsUnavailable
from ..machine import Exit, Machine, MachineSpec
from .engine import Engine, State

SOON_S = 1.0
"""What a machine says first is waited for without asking the engine for so long."""

POLL_S = 5.0
"""A waiting call is given up and the state asked after so long: over a cut network it never returns."""

ANSWER_S = 10.0
"""An engine that does not tell a container's state for so long counts as away."""

UNKNOWN_END = 255
"""The engine's code for a container that it found dead; no bootstrap ends with it."""


NO_SPEC = MachineSpec(image="", network=False, cores=0, memory_bytes=0, processes=0, disk_bytes=0)
"""Of a machine of which only the name is known, enough to remove it."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What a container is to be made with, so that its output comes back."""

    pipe: str = ""
    """Where the bootstrap writes; empty: to the engine."""
    host: Mapping[str, Any] = field(default_factory=dict)
    """A part of its HostConfig."""
    names: str = ""
    """A file that the engine sees too, to be the /etc/hosts of a container without a network; empty: there is none."""


class Outputs(Protocol):
    """The outputs of all machines of one back-end, each machine used once."""

    async def open(self) -> None:
        """Raises VmmsUnavailable."""

    async def close(self) -> None:
        """Follows no machine any more; what they say is still kept."""

    def check(self) -> None:
        """Raises VmmsUnavailable if no output could be kept now."""

    def prepare(self, machine: Machine) -> Channel:
        """Called before the container is made."""

    async def attach(self, machine: Machine) -> None:
        """Called when the container is made and not started."""

    async def check_idle(self, machine: Machine) -> None:
        """Raises MachineLost if the machine has ended."""

    async def begins(self, machine: Machine) -> bool:
        """Waits SOON_S at most for the machine's first word, or its end."""

    async def has_begun(self, machine: Machine) -> bool:
        """The same, but as it is now."""

    async def ended(self, machine: Machine) -> Exit:
        """Waits for the end. Raises NotStarted, MachineLost."""

    def chunks(self, machine: Machine) -> AsyncGenerator[bytes, None]:
        """All bytes, each once, from the first to the end."""

    async def adopt(self, machine: Machine) -> None:
        """Takes over a machine that somebody else may have followed. Raises MachineLost."""

    def machines(self) -> list[Machine]:
        """Those of which something is kept here, whether or not they have a container."""

    def over(self, machine: Machine) -> bool:
        """Whether its last process is known to be gone."""

    async def shut(self, machine: Machine) -> None:
        """Keeps nothing more of what it says. A program that has not begun by now never does, if we can help it."""

    async def remove(self, machine: Machine) -> None:
        """Removes what is kept. Called after `shut`, when the container is gone."""


async def state_of(engine: Engine, machine: Machine) -> State:
    """Asked again while the engine is away, as it is while it restarts."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + engine.away_s
    pause_s = 0.05
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await engine.state(machine.id)
        except (VmmsUnavailable, TimeoutError) as e:
            if loop.time() > give_up:
                raise VmmsUnavailable(f"the Docker engine has been away for {engine.away_s:.0f} s") from e
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)
