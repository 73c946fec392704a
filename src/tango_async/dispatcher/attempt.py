"""One job on one machine, from claim to end.

Every path ends in `dead`, back in the queue, or with another holder; every machine taken is given
back, or left running for the next dispatcher to adopt. Cancelling the task means that this
dispatcher stops: what started is handed over, what did not is given back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from ..config import Settings
from ..errors import (
    HostUnavailable,
    MachineLost,
    NotStarted,
    QueueUnavailable,
    Stale,
    StoreError,
    StoreUnavailable,
    Unsuitable,
    VmmsError,
    VmmsUnavailable,
)
from ..feedback import CappedOutput, header, verdict_text
from ..files.base import FileStore
from ..machine import Machine, MachineSpec
from ..model import Claim, Verdict
from ..queue.redis import Answer, Queue
from ..vmms.base import CloudVmms, ManyHosts, Vmms
from .breaker import Breaker, blames_host
from .cores import Cores, numbers
from .faults import MOST_FREE, Fault, fault_of
from .holds import Cancelled, Hold
from .images import Images
from .pool import Lent, Pool
from .quiet import Watch, watched
from .run import LiveOutput, Result, Run

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S = 0.5
"""Between two tries of writing an ending, while Redis or the disk is away."""

COUNTERS = {
    Verdict.TIMEOUT: "runjob_timeouts",
    Verdict.OUTPUT_TOO_LONG: "runjob_errors",
    Verdict.COPY_IN_FAILED: "copyin_errors",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What every attempt of a dispatcher works with."""

    settings: Settings
    queue: Queue
    store: FileStore
    vmms: Vmms
    hosts: ManyHosts | None
    """The same, where the back-end has several."""
    pool: Pool
    images: Images
    """Knows whether the engine is well; nothing is claimed until it is."""
    cores: Cores
    breaker: Breaker
    """Hears whether jobs can be started here."""
    later: Callable[[Coroutine[Any, Any, None]], None]
    """Does work that no result waits for."""


def machine_spec(claim: Claim, vmms: Vmms, cpuset: str) -> MachineSpec:
    """The machine for a job; where there is no network to give, asking for one makes no other machine."""
    spec = claim.spec.machine()
    # A quiet job has whole cores: one that is held back in between measures that.
    cores = float(len(numbers(cpuset))) if claim.spec.quiet and cpuset else spec.cores
    network = spec.network and vmms.capabilities.network
    cloud = spec.cloud if vmms.capabilities.clouds else None
    return msgspec.structs.replace(spec, network=network, cores=cores, cpuset=cpuset, cloud=cloud)


class Attempt:
    """One hold of one job."""

    def __init__(self, bench: Bench, hold: Hold) -> None:
        self._bench = bench
        self._hold = hold
        self._claim = hold.claim
        self._lent: Lent | None = None
        self._began_ms = int(time.time() * 1000)
        self._watch: Watch | None = None
        self._quiet = ""
        """What is said of the cores of a quiet job."""

    async def run(self, turn: asyncio.Future[None]) -> None:
        """Runs the job from its start, when its turn has come."""
        await self._settle(self._fresh(turn))

    async def adopt(self, machine: Machine, since_start_s: float) -> None:
        """Follows a job that an earlier dispatcher started on the machine."""
        await self._settle(self._adopted(machine, since_start_s))

    async def _fresh(self, turn: asyncio.Future[None]) -> None:
        bench, spec = self._bench, self._claim.spec
        await self._hold.wait(turn)
        place = bench.cores.pick(spec.slots) if spec.quiet else nullcontext(bench.cores.ordinary)
        async with self._host() as host:
            with place as cpuset:
                wanted = machine_spec(self._claim, bench.vmms, cpuset)
                await self._tell_account(wanted)
                try:
                    if not await self._on_machine(wanted, host, fresh=False):
                        await self._on_machine(wanted, host, fresh=True)
                except StoreUnavailable as e:
                    log.error("job %d: it waits for the file store: %s", self._claim.id, e)
                    await self._until_the_store_answers()
                    raise

    async def _until_the_store_answers(self) -> None:
        """Keeps the job, and its slot: given back now it would be here again at once, and no job could be run."""
        while not self._hold.stale:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(self._bench.settings.dispatcher.finish_s):
                    await self._bench.store.check()
                    return
            await asyncio.sleep(PAUSE_S)

    async def _tell_account(self, wanted: MachineSpec) -> None:
        """Gives the back-end the account that the job brought."""
        if wanted.cloud is not None and wanted.cloud.account:
            credentials = await self._patiently(lambda: self._bench.queue.credentials(self._claim))
            if credentials is None:
                raise Unsuitable("addJob's accessKeyId and accessKey have expired: send the job again")
            await cast(CloudVmms, self._bench.vmms).know(credentials)

    @asynccontextmanager
    async def _host(self) -> AsyncIterator[str]:
        """Slots of one host, where the back-end has several; then its name. Raises VmmsError."""
        hosts, n = self._bench.hosts, self._claim.spec.slots
        if hosts is None:
            yield ""
            return
        turn = hosts.ask(self._claim.spec.image, n)
        try:
            await self._hold.wait(turn)
            yield turn.result()
        finally:
            hosts.leave(n, turn)

    async def _on_machine(self, wanted: MachineSpec, host: str, *, fresh: bool) -> bool:
        """False if a prepared machine turned out to be dead: then nothing of the job was run."""
        bench, spec = self._bench, self._claim.spec
        async with self._lent_out(bench.pool.lease(wanted, fresh=fresh, host=host)) as lent:
            machine_id, vmms = lent.machine.id, bench.vmms.name
            self._hold.check(await self._patiently(lambda: bench.queue.start(self._claim, machine_id, vmms)))
            run = self._run_on(lent)
            try:
                result = await run.send(bench.store.inputs(spec.pin, spec.files))
                lent.started = True
                bench.breaker.worked(spec.image)
                result = result or await self._followed(run.follow())
            except (MachineLost, NotStarted) as e:
                if not lent.prepared or (lent.started and isinstance(e, MachineLost)):
                    raise
                log.warning("job %d: its prepared machine was of no use, it gets another one: %s", self._claim.id, e)
                return False
            await self._end(result)
            return True

    async def _adopted(self, machine: Machine, since_start_s: float) -> None:
        bench = self._bench
        with bench.cores.hold(machine.spec.cpuset), self._held(machine):
            async with self._lent_out(bench.pool.lease_of(machine)) as lent:
                await bench.vmms.adopt(machine)
                await self._end(await self._followed(self._run_on(lent).follow_again(since_start_s)))

    @contextmanager
    def _held(self, machine: Machine) -> Iterator[None]:
        """The slots of a machine that runs already."""
        hosts, n = self._bench.hosts, self._claim.spec.slots
        if hosts is None:
            yield
            return
        turn = hosts.hold(machine, n)
        try:
            yield
        finally:
            hosts.leave(n, turn)

    @asynccontextmanager
    async def _lent_out(self, lease: AbstractAsyncContextManager[Lent]) -> AsyncIterator[Lent]:
        bench = self._bench
        async with AsyncExitStack() as stack:
            async with self._hold.wanted():
                # On a cloud a machine may take minutes.
                self._lent = await stack.enter_async_context(lease)
            if self._claim.spec.quiet and self._lent.machine.spec.cpuset:
                wait_s = bench.settings.dispatcher.machine_wait_s
                async with watched(bench.vmms, self._lent.machine, wait_s=wait_s) as self._watch:
                    yield self._lent
            else:
                yield self._lent

    async def _followed(self, following: Coroutine[Any, Any, Result]) -> Result:
        result = await following
        if self._watch is not None:
            self._quiet = await self._watch.over()
        return result

    def _run_on(self, lent: Lent) -> Run:
        async def publish(offset: int, data: bytes) -> int:
            return await self._bench.queue.show(self._claim, offset, data)

        live = LiveOutput(publish, self._bench.settings.limits.live_output_bytes)
        times = self._bench.settings.dispatcher
        return Run(self._bench.vmms, lent.machine, self._claim.spec.limits, self._hold, live, times)

    async def _settle(self, work: Coroutine[Any, Any, None]) -> None:
        """Does the work; whatever goes wrong in it, the job goes on to one of its states."""
        claim = self._claim
        try:
            await work
        except Stale:
            log.warning("job %d: another dispatcher holds it now; this attempt is dropped", claim.id)
        except Cancelled:
            await self._end(Result(Verdict.CANCELLED, CappedOutput(0)))
        except asyncio.CancelledError:
            # Where the machine was kept, the job stays as it is until the next dispatcher adopts it.
            if self._lent is None or not self._lent.kept:
                await self._patiently(lambda: self._bench.queue.retry(claim, "its host is stopping", charged=False))
            raise
        except Exception as error:
            if isinstance(error, VmmsUnavailable) and not isinstance(error, HostUnavailable):
                self._bench.images.lost(error)
            elif isinstance(error, VmmsError | TimeoutError):
                # Is it the machine, or the host? On a broken host every job would spend its retries at once.
                await self._bench.images.look()
            if isinstance(error, VmmsError | TimeoutError):
                log.warning("job %d: attempt %d: %s", claim.id, claim.attempt, str(error) or "no machine in time")
            else:
                log.exception("job %d: attempt %d", claim.id, claim.attempt)
            fault = fault_of(error, engine_well=self._bench.images.healthy)
            began = self._lent is not None and self._lent.started
            if fault.charged and not began and blames_host(error):
                self._bench.breaker.fault(claim.spec.image, self._hold, f"{fault.reason} {error}".strip())
            await self._retry(fault)

    async def _retry(self, fault: Fault) -> None:
        charged = fault.charged or self._claim.attempt > MOST_FREE
        answer = await self._patiently(
            lambda: self._bench.queue.retry(
                self._claim, fault.reason, charged=charged, counter=fault.counter, hopeless=fault.hopeless
            )
        )
        if answer is Answer.SPENT:
            tries = self._claim.attempt if fault.hopeless else self._bench.settings.dispatcher.job_retries + 1
            await self._end(Result(fault.verdict, CappedOutput(0)), fault.reason, tries)
        elif answer is Answer.CANCEL:
            await self._end(Result(Verdict.CANCELLED, CappedOutput(0)))

    async def _end(self, result: Result, reason: str = "", tries: int = 1) -> None:
        """Stores the feedback, then ends the job; not given up while the disk is full or Redis away."""
        claim, bench = self._claim, self._bench
        ref = f"{claim.id}.{claim.seq}.{result.verdict}"
        limits = claim.spec.limits
        text = verdict_text(
            result.verdict,
            timeout_s=limits.timeout_s,
            output_stop_bytes=limits.output_stop_bytes,
            attempts=tries,
            reason=reason,
        )
        await self._store(ref, self._feedback(result, text))
        answer = await self._patiently(
            lambda: bench.queue.end(
                claim, result.verdict, text, ref, counter=COUNTERS.get(result.verdict, ""), trace=self._trace(result)
            )
        )
        if answer is Answer.CANCEL:
            bench.later(bench.store.drop_output(ref))
            await self._end(Result(Verdict.CANCELLED, result.output, result.exit))
        elif answer is Answer.STALE:
            bench.later(bench.store.drop_output(ref))
            raise Stale
        else:
            bench.later(self._tidy(ref))

    async def _tidy(self, ref: str) -> None:
        spec = self._claim.spec
        if await self._bench.queue.newest_of_output(spec.lab, spec.output_name) == self._claim.id:
            await self._bench.store.show_output(ref, spec.lab, spec.output_name)
        await self._bench.store.unpin(spec.pin)

    async def _store(self, ref: str, body: bytes) -> None:
        while True:
            try:
                async with asyncio.timeout(self._bench.settings.dispatcher.finish_s):
                    return await self._bench.store.put_output(ref, body)
            except (StoreError, TimeoutError) as e:
                log.error("job %d: its output cannot be stored, trying again: %s", self._claim.id, str(e) or "too slow")
                if self._hold.stale:
                    raise Stale from e
                await asyncio.sleep(PAUSE_S)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks until the queue answers; a late holder then hears STALE."""
        while True:
            try:
                return await ask()
            except QueueUnavailable as e:
                log.warning("job %d: %s; trying again", self._claim.id, e)
                await asyncio.sleep(PAUSE_S)

    def _feedback(self, result: Result, text: str) -> bytes:
        claim = self._claim
        head = header(
            name=claim.spec.name,
            job_id=claim.id,
            received_ms=self._began_ms,
            ended_ms=int(time.time() * 1000),
            verdict=text,
            said=self._quiet,
        )
        return head + self._autodriver(result) + result.output.bytes()

    def _autodriver(self, result: Result) -> bytes:
        if result.verdict is Verdict.TIMEOUT:
            return f"Autodriver: Job timed out after {self._claim.spec.limits.timeout_s} seconds\n".encode()
        if result.exit is None:
            return b""
        memory = "Autodriver: Job ran out of memory\n" if result.exit.out_of_memory else ""
        return f"{memory}Autodriver: Job exited with status {result.exit.code}\n".encode()

    def _trace(self, result: Result) -> list[str]:
        job_id = self._claim.id
        if result.exit is None:
            return []
        return [
            f"Input copied for job {job_id} [status=0]",
            f"Job {job_id} executed [status={result.exit.code}]",
            f"Output copied for job {job_id} [status=0]",
            *([self._quiet] if self._quiet else []),
        ]
