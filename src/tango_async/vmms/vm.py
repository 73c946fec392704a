"""A job on a VM that is reached by SSH: the part that every VMMS of virtual machines shares.

Outlives broken connections and dispatchers, since what runs on the VM needs neither: the output is
followed by its offset, so that after a break it goes on without a lost or a doubled byte, and the end
is read from the exit record.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from ..errors import MachineLost, NotStarted, VmmsError
from ..machine import Exit, Limits, Machine
from . import remote
from .bootstrap import after_mark, ended, mark, why_not_started
from .ssh import Distrusted, Ended, Link, LinkDown, Process

JOB_USER = "autograde"
PAUSE_S = 0.5
STOP_S = 10.0
"""Longest time for a run to be killed and removed."""


UNSENT = "the files never reached the machine"


class Vm:
    """One VM with one run on it: that of its machine."""

    def __init__(self, link: Link, machine: Machine, *, output_bytes: int, guard_s: int, sent: bool = False) -> None:
        """`guard_s` bounds a run whose limits nobody gave. `sent`: the files went there in an earlier life."""
        self.link = link
        self._machine = machine
        self._output_bytes = output_bytes
        self._guard_s = guard_s
        self.trouble = ""
        """Why it could not be reached when that was last tried."""
        self._sent = sent
        self._facts: remote.Facts | None = None
        self._size: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Of the whole output, once the run has ended."""

    async def ready(self) -> None:
        """Waits until the VM can be used, however often it refuses while it boots; the caller sets the limit.

        Raises VmmsError if it answers and lacks what a job needs, or if it is another host.
        """
        while True:
            try:
                await self._known()
            except LinkDown as e:
                if why := await self.link.why_gone():
                    raise MachineLost(why) from e
                self.trouble = str(e)
                await asyncio.sleep(PAUSE_S)
            else:
                self.trouble = "it was reached, and did not do what it was told"
                return

    async def answers(self) -> None:
        """Asks a VM that was ready before for a sign of life. Raises MachineLost."""
        await self.link.patiently(lambda: self.link.run(["true"]))

    async def feed(self, chunks: AsyncIterator[bytes], limits: Limits | None = None) -> None:
        """Sends the bytes to the bootstrap and ends its input, also when `chunks` fails.

        Raises NotStarted if the bootstrap gives up before, and MachineLost if the connection breaks while there is
        more to send: nothing of the job runs then. Where it breaks later, `run_job` tells what came of it.
        """
        guard_s = limits.timeout_s + remote.GUARD_S if limits else self._guard_s
        facts, machine = await self.link.patiently(self._known), self._machine
        if facts.drives and not machine.spec.network and facts.root == "no":
            raise VmmsError(f"{self._where}: a job without network needs sudo, which {facts.login} does not have")
        command = remote.receive(
            facts, machine.spec, self._run(facts), machine.nonce, output_bytes=self._output_bytes, guard_s=guard_s
        )
        try:
            async with self.link.process(command) as process:
                try:
                    async for chunk in chunks:
                        await process.write(chunk)
                except BrokenPipeError:
                    self._sent = True
                    await self.run_job()
                process.end_input()
                done = await process.ended()
        except LinkDown as e:
            async for _ in chunks:
                raise MachineLost(f"{self._where}: the connection broke while the files were sent: {e}") from e
            self._sent = True  # or as good as: they may all have arrived
            return
        if done.status:
            raise VmmsError(f"{self._where}: the run could not be set up: {_text(done)}")
        self._sent = True

    async def run_job(self) -> Exit:
        done = await self.link.patiently(self._wait)
        if done.status == remote.NO_SUCH_RUN:
            if self._sent:
                raise MachineLost(f"{self._where}: the run is not there any more")
            raise NotStarted(UNSENT)
        record = done.out.decode(errors="replace")
        size, _, head = done.err.partition(b"\n")
        if size.isdigit() and not self._size.done():
            self._size.set_result(int(size))
        if not record.endswith("\n") or not record.strip().isdigit():
            if not self._sent:
                raise NotStarted(UNSENT)
            raise MachineLost(f"{self._where}: how the run ended was not recorded")
        code = int(record)
        if not head.startswith(mark(self._machine.nonce)):
            raise NotStarted(why_not_started(code, head))
        return ended(code)

    async def _wait(self) -> Ended:
        facts = await self._known()
        async with self.link.process(remote.wait(facts, self._run(facts))) as process:
            process.end_input()
            return await process.ended()

    async def copy_out(self) -> AsyncGenerator[bytes, None]:
        """The program's output, from its first byte, until it has ended."""
        async with aclosing(self._output()) as output:
            async for chunk in after_mark(output, self._machine.nonce):
                yield chunk

    async def _output(self) -> AsyncGenerator[bytes, None]:
        offset, patience = 0, self.link.patience()
        while True:
            try:
                facts = await self._known()
                async with self.link.process(remote.follow(facts, self._run(facts), offset)) as process:
                    process.end_input()
                    while chunk := await self._next(process, offset):
                        offset += len(chunk)
                        yield chunk
                    if self._is_whole(offset):
                        return
                    done = await process.ended()
                if done.status != remote.NO_SUCH_RUN and done.err.strip() != str(offset).encode():
                    raise LinkDown(f"the output was cut at byte {offset}: {_text(done)}")
            except LinkDown as e:
                await patience.after(e)
                continue
            if done.status == remote.NO_SUCH_RUN and self._sent:
                raise MachineLost(f"{self._where}: the run is not there any more")
            return

    async def _next(self, process: Process, offset: int) -> bytes:
        """The next bytes; b"" at the end, of which `run_job` may have heard before the process tells."""
        reading = asyncio.create_task(process.read())
        try:
            await asyncio.wait((reading, self._size), return_when=asyncio.FIRST_COMPLETED)
            return b"" if not reading.done() and self._is_whole(offset) else await reading
        finally:
            reading.cancel()

    def _is_whole(self, offset: int) -> bool:
        return self._size.done() and offset == self._size.result()

    async def adopted(self) -> None:
        """Raises MachineLost if the VM is gone."""
        self._sent = True
        await self.link.patiently(self._known)

    async def stop(self) -> None:
        """Kills the run with all its processes and removes its files. Raises VmmsError if that did not succeed."""
        facts = await self._known()
        done = await self.link.run(remote.stop(facts, self._run(facts)), within_s=STOP_S)
        if done.status:
            raise VmmsError(f"{self._where}: the run could not be ended: {_text(done)}")

    async def as_root(self, script: str, *arguments: str) -> Ended:
        """A short script of `sh`. Raises LinkDown."""
        facts = await self._known()
        return await self.link.run(remote.rooted(facts, script, *arguments))

    async def clean(self) -> None:
        """Removes what any run left on the VM. Raises VmmsError if something stayed: it is no use any more."""
        facts = await self._known()
        done = await self.link.run(remote.clean(facts), within_s=STOP_S)
        if done.status:
            raise VmmsError(f"{self._where}: not all of the last job could be removed: {_text(done)}")

    async def _known(self) -> remote.Facts:
        if self._facts is None:
            done = await self.link.run(remote.facts(JOB_USER))
            try:
                facts = remote.Facts.read(done.out)
            except ValueError as e:
                raise Distrusted(f"{self._where}: {e} {_text(done)}") from e
            if facts.root == "no" and not facts.drives:
                raise Distrusted(f"{self._where}: {facts.login} is not root, has no sudo, and there is no autodriver")
            if facts.missing:
                raise Distrusted(f"{self._where}: not installed on the VM: {', '.join(facts.missing)}")
            self._facts = facts
        return self._facts

    def _run(self, facts: remote.Facts) -> str:
        return f"{facts.base}/{self._machine.id}"

    @property
    def _where(self) -> str:
        return f"{self.link.reach.user}@{self.link.reach.host}"


def _text(done: Ended) -> str:
    return done.err[:300].decode(errors="replace").strip() or f"status {done.status}"
