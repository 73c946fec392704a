"""Where the jobs of a soak run: what it needs of a back-end, and those that it knows."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import ClassVar, Protocol

from cloud import Instances
from cluster import Cluster
from count import Starts
from engines import LocalDocker, LocalPodman, SeveralDockers
from plan import Part, Wishes
from sandbox import Sandboxes


class Backend(Protocol):
    """The machines' side of a stage, made in the stage's mount namespace; everything it makes ends with it."""

    dispatchers: ClassVar[int]
    """How many there are."""
    store: ClassVar[str]
    """The kind of store that is usual with it; one of `stores.KINDS`."""
    wishes: ClassVar[Wishes]
    """Torments of its own parts."""
    jobs_per_s: ClassVar[float]
    """What it can run on a small machine."""
    settle_s: ClassVar[float]
    """So long after the last torment no machine is left that nobody owns."""

    def __init__(self, directory: Path, state: Path, starts: Starts) -> None:
        """`directory` is the stage's; `state` has a directory for each host, with the dispatchers' places."""

    @staticmethod
    def missing() -> list[str]:
        """What this machine lacks."""

    async def open(self) -> None:
        """Makes all that stands before a dispatcher starts, with the image in it and the starts shown to jobs."""

    def environment(self, program: str) -> dict[str, str]:
        """Settings of that server or dispatcher."""

    def asks(self, token: str) -> dict[str, object]:
        """What the addJob with that token says besides."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """Name → what its wishes name. One of these that was killed or cut off works when all dispatchers say so."""

    @property
    def away(self) -> list[tuple[float, float]]:
        """When, by the clock of the machines, it was dead and may have lost what a machine said; a repeat is right."""

    @property
    def lost(self) -> Set[str]:
        """Machines that were ended by torments of its own, by the names that Redis had for them."""

    async def destroy(self, machine: str) -> bool:
        """Ends a machine from the outside, by the name that Redis has for it; False if that cannot be done now."""

    async def strays(self) -> list[str]:
        """What is left of machines."""

    async def close(self) -> None: ...


BACKENDS: dict[str, type[Backend]] = {
    "localSandbox": Sandboxes,
    "localDocker": LocalDocker,
    "podman": LocalPodman,
    "distDocker": SeveralDockers,
    "ec2SSH": Instances,
    "tashiSSH": Cluster,
}
