"""What every back-end (VMMS, in Tango's word) promises, and how one is found by name.

A machine's life:  initialize_vm → wait_vm → copy_in → run_job ∥ copy_out → destroy_vm

The job starts by itself when the last byte of its files has arrived (bootstrap.py), so that a
machine can be started before its job is known and no second call is needed to run it. `run_job` and
`copy_out` only follow it; they can be called again, by another process, after `adopt`.

A third party adds a back-end as `package.module:Class` without touching this package.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, runtime_checkable

from .. import extras
from ..config import Settings
from ..errors import ConfigError
from ..machine import Capabilities, Credentials, Exit, InputFile, Limits, Machine, MachineSpec, Standing, Usage
from ..model import EngineState


class Vmms(Protocol):
    """One back-end on one host. All calls raise VmmsError's family and nothing else.

    None of them has a time limit of its own: the caller sets one with `asyncio.timeout`, and every
    call can be cancelled at any await without leaking more than a machine that `get_vms` then shows.
    """

    name: str
    capabilities: Capabilities

    async def open(self) -> None:
        """Probes the engine. Raises VmmsUnavailable, saying what to install or to change."""

    async def close(self) -> None:
        """Lets the engine go; machines stay as they are."""

    async def get_images(self) -> list[str]:
        """The images that a job may name, without `:latest`."""

    async def image_ids(self) -> dict[str, str]:
        """What each of these names means now, as the back-end tells it; only where `capabilities.image_ids`."""

    async def load_image(self, name: str, archive: AsyncIterator[bytes]) -> None:
        """Loads a `docker save` archive under `name`; only where `capabilities.load_images`."""

    async def initialize_vm(self, spec: MachineSpec, owner: str) -> Machine:
        """Makes and starts a machine, labelled with `owner`. Raises ImageNotFound."""

    async def wait_vm(self, machine: Machine) -> None:
        """Returns when the machine takes files."""

    async def copy_in(self, machine: Machine, files: Sequence[InputFile], limits: Limits) -> None:
        """Sends the files; the program starts when the last byte has arrived."""

    async def run_job(self, machine: Machine) -> Exit:
        """Waits for the program's end.

        Raises NotStarted if it never began (nothing of the job was executed), MachineLost if the
        machine vanished under it.
        """

    def copy_out(self, machine: Machine) -> AsyncIterator[bytes]:
        """The program's output, byte-exact and from its first byte, followed until it ends."""

    async def usage(self, machine: Machine) -> Usage | None:
        """What the machine has used; None if that is not known. Only where `capabilities.cpusets`."""

    async def destroy_vm(self, machine: Machine) -> None:
        """Kills and removes the machine with all its processes and files; one that is gone is no error."""

    async def get_vms(self) -> list[Machine]:
        """Every machine that carries this installation's label, whoever made it, running or ended."""

    async def adopt(self, machine: Machine) -> None:
        """Takes over a machine that `get_vms` listed, so that run_job and copy_out follow it."""


class CloudVmms(Vmms, Protocol):
    """One with `capabilities.clouds`."""

    async def know(self, credentials: Credentials) -> None:
        """A job's own account, before a machine is made there; kept until nothing is left there, over restarts."""

    def unseen(self) -> int:
        """Accounts that did not say which machines are there when `get_vms` was last asked: it showed none of those."""


class ScaledVmms(Vmms, Protocol):
    """One with `capabilities.scaling`: `initialize_vm` makes a machine only when none is there for the job."""

    def standing(self, image: str) -> Standing:
        """What this driver has of the image now."""

    def make_way(self, spec: MachineSpec, most: int) -> None:
        """One of the spec is about to be asked for: machines of its image that wait, and do not fit, are ended, so that
        there are no more than `most` with it."""


@runtime_checkable
class ManyHosts(Protocol):
    """Besides, what a back-end over several hosts must do. What is not `async` waits for no host."""

    changed: asyncio.Event
    """Set when a host has come or gone, or its images are others; whoever waits for it clears it."""

    def hosts(self) -> list[EngineState]:
        """Each host as last seen."""

    def slots(self) -> int:
        """The slots of all hosts that are well, and those that jobs still have on the others."""

    def room(self, image: str) -> int:
        """Slots that are free now for jobs of the image."""

    def ask(self, image: str, n: int) -> asyncio.Future[str]:
        """A turn to take `n` slots of one host; it tells which when they are taken. See `leave`.

        Its error is ImageNotFound if no host has the image, or HostUnavailable if only one has that is away.
        """

    def leave(self, n: int, turn: asyncio.Future[str]) -> None:
        """Gives back what the turn has taken, or gives the turn up."""

    def hold(self, machine: Machine, n: int) -> asyncio.Future[str]:
        """Takes `n` slots of the machine's host at once, whether they are free or not; to be left as a turn."""

    def host_of(self, machine: Machine) -> str:
        """The name of the host that the machine is on."""

    async def initialize_on(self, host: str, spec: MachineSpec, owner: str) -> Machine:
        """As `initialize_vm`, which chooses the host itself: a healthy one with the image and most room."""

    async def load_on(self, host: str, name: str, archive: AsyncIterator[bytes]) -> None:
        """As `load_image`, on one host."""

    async def reaches(self, machine: Machine) -> bool:
        """Whether the machine's host answers now."""


@runtime_checkable
class Registries(Protocol):
    """Besides, what a back-end that knows registries can do, when it is told to: no job makes it do so.

    `host` is one of `ManyHosts.hosts`, or empty where there is one only. Both raise VmmsError.
    """

    async def pull_image(self, name: str, host: str) -> None: ...

    async def push_image(self, name: str, host: str) -> None: ...


Factory = Callable[[Settings, str], Vmms]
"""Called with the settings and the installation's id."""

KNOWN = {
    "localSandbox": "tango_async.vmms.sandbox:LocalSandbox",
    "localDocker": "tango_async.vmms.docker:LocalDocker",
    "ec2SSH": "tango_async.vmms.ec2.driver:Ec2Ssh",
    "tashiSSH": "tango_async.vmms.tashi.driver:TashiSsh",
    "distDocker": "tango_async.vmms.dist:DistDocker",
}


def load(name: str, settings: Settings, install: str) -> Vmms:
    """The back-end of that name. Raises ConfigError if there is none, or what it needs is not installed."""
    target = KNOWN.get(name, name)
    module_name, _, attribute = target.partition(":")
    if not attribute:
        known = ", ".join(sorted(KNOWN))
        raise ConfigError(f"dispatcher.vmms: unknown VMMS {name!r}; known: {known}, or package.module:Class")
    try:
        factory: Factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as e:
        said = f"dispatcher.vmms: {name} cannot be loaded: {e}"
        if name in KNOWN and isinstance(e, ModuleNotFoundError) and e.name:
            said += f"; type: {extras.install(e.name.partition('.')[0])}"
        raise ConfigError(said) from e
    return factory(settings, install)
