"""What every back-end must do, as tests: subclass VmmsContract and give it a `backend` fixture.

    class TestLocalSandbox(VmmsContract): ...

The fixture yields an opened Backend, and afterwards fails the test if a machine, process or file was
left. Nothing here knows a back-end; what only one can do is tested beside it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from hashlib import md5
from uuid import uuid4

import pytest

from contracts.machines import (
    MB,
    Backend,
    Files,
    Ran,
    Step,
    adopted,
    first_output,
    follow,
    inputs,
    limit,
    make,
    only,
    output_of,
    processes,
    tar_of,
    wait_until,
)
from tango_async.errors import ImageNotFound, NotStarted
from tango_async.machine import Exit, InputFile, Machine

SIGNALS = "for s in INT QUIT TERM HUP PIPE XFSZ; do sh -c 'kill -'$s' $$'; echo $?; done 2>/dev/null"
DEFAULTS = [b"130", b"131", b"143", b"129", b"141", b"153"]

BOMB = """
trap 'exec sleep "$1"' EXIT
sh "$0" "$1" & sh "$0" "$1" & sh "$0" "$1" &
wait
"""
"""Triples itself; who cannot fork any more stays, so that all are seen at once."""


class Delivery:
    """Files go in whole or not at all."""

    async def test_a_trivial_job_says_hello(self, backend: Backend) -> None:
        assert await backend.run(make("echo hello")) == Ran(Exit(0), b"hello\n")

    async def test_a_failing_make_is_a_normal_end(self, backend: Backend) -> None:
        ran = await backend.run(make("echo wrong; exit 7"))
        assert ran.code == 2 and ran.output.startswith(b"wrong\n")

    async def test_a_job_without_makefile_is_a_normal_end(self, backend: Backend) -> None:
        ran = await backend.run({"readme": "nothing to make"})
        assert ran.code == 2 and b"No targets" in ran.output

    async def test_the_job_runs_where_tango_ran_it(self, backend: Backend) -> None:
        ran = await backend.run(make("pwd; echo $HOME"))
        assert ran.output == b"/home/autograde/autolab\n/home/autograde\n"

    async def test_any_name_and_size_arrives(self, backend: Backend) -> None:
        files: Files = {f"file{i}": str(i) for i in range(300)}
        files |= {"ünïcode ☃.txt": "snow", "n" * 255: "long", "ü" * 120: "long in bytes", "-rf": "dash", "empty": ""}
        files |= {"back\\slash": "b", "star*": "s", " blank ": "w", ".hidden": "h", "block": b"x" * 512}
        ran = await backend.run(
            files | make("ls -A | wc -l; cat ü*.txt n*n ü*ü ./-rf back* star* ' blank ' .hidden empty")
        )
        assert ran == Ran(Exit(0), b"311\n" + b"snowlonglong in bytesdashbswh")

    async def test_a_large_file_arrives_whole(self, backend: Backend) -> None:
        data = os.urandom(20 * MB + 1)
        ran = await backend.run({"data": data} | make("md5sum <data"))
        assert ran.output.split()[0].decode() == md5(data).hexdigest()

    async def test_a_cut_archive_never_starts(self, backend: Backend) -> None:
        files = inputs({"a": "a" * 600, "l" * 150: "", "b": b"b" * 512} | make("echo started"))

        async def cut(at: Callable[[int], int]) -> None:
            async with backend.machine() as machine:
                whole = await tar_of(machine, files)
                await backend.vmms.feed(machine, only(whole[: at(len(whole))]))
                assert await output_of(backend.vmms, machine) == b""
                with pytest.raises(NotStarted):
                    await backend.vmms.run_job(machine)

        async with backend.machine() as machine:
            size = len(await tar_of(machine, files))
        last = size - 1024 - 512  # the last member's header; what follows are the end blocks
        cuts = [*range(size % 512, last + 1, 512), 0, 1, 700, last - 1, last + 1, last + 511]
        for few in range(0, len(cuts), 4):
            await asyncio.gather(*(cut(lambda _, at=at: at) for at in cuts[few : few + 4]))  # type: ignore[misc]

    async def test_a_feed_that_fails_never_starts(self, backend: Backend) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"x" * 100
            raise ZeroDivisionError

        files = [*inputs(make("echo started")), InputFile("half", 1000, broken)]
        async with backend.machine() as machine:
            with pytest.raises(ZeroDivisionError):
                await backend.vmms.copy_in(machine, files, limit())
            with pytest.raises(NotStarted):
                await backend.vmms.run_job(machine)

    async def test_a_cancelled_feed_never_starts(self, backend: Backend) -> None:
        never = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield b"x" * 100
            await never.wait()

        files = [*inputs(make("echo started")), InputFile("half", 1000, stuck)]
        async with backend.machine() as machine:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await backend.vmms.copy_in(machine, files, limit())
            with pytest.raises(NotStarted):
                await backend.vmms.run_job(machine)

    async def test_files_larger_than_the_disk_never_start(self, backend: Backend) -> None:
        async with backend.machine(disk_bytes=2 * MB) as machine:
            with pytest.raises(NotStarted, match="unpacked"):
                await backend.vmms.copy_in(machine, inputs({"big": bytes(8 * MB)} | make("echo started")), limit())
                await backend.vmms.run_job(machine)

    async def test_an_unknown_image_is_named(self, backend: Backend) -> None:
        with pytest.raises(ImageNotFound, match="no-such-image"):
            await backend.vmms.initialize_vm(backend.spec(image="no-such-image"), "tester")
        assert backend.image in await backend.vmms.get_images()


class Following:
    """The output is byte-exact, and the end is told as it was."""

    async def test_output_is_byte_exact(self, backend: Backend) -> None:
        data = b"\xff\xfe\x00 caf\xc3\xa9 \xc3(\r\n\x1b[31m\r no final newline"
        assert (await backend.run({"data": data} | make("cat data; cat data >&2"))).output == data + data

    async def test_five_megabytes_of_noise_come_back(self, backend: Backend) -> None:
        data = os.urandom(5 * MB)
        assert (await backend.run({"data": data} | make("cat data"))).output == data

    async def test_no_output_is_no_output(self, backend: Backend) -> None:
        assert await backend.run(make(":")) == Ran(Exit(0), b"")

    async def test_the_programs_may_open_their_output_by_name(self, backend: Backend) -> None:
        ran = await backend.run(make("echo one", "echo out >/dev/stdout", "echo err >/dev/stderr; echo last"))
        assert ran == Ran(Exit(0), b"one\nout\nerr\nlast\n")

    async def test_output_comes_while_the_program_runs(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make("echo first; sleep 600")), limit())
            assert await first_output(backend.vmms, machine) == b"first\n"

    async def test_output_and_end_can_be_asked_again(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            step = Step()
            await backend.vmms.copy_in(machine, inputs(make(f"echo again; {step}; :")), limit())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await backend.vmms.run_job(machine)
            await step.reached()
            step.go_on()
            first = await follow(backend.vmms, machine)
            assert await follow(backend.vmms, machine) == first == Ran(Exit(0), b"again\n")

    async def test_a_forged_mark_is_only_output(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            forged = f"tango-started {machine.nonce}\n" * 2 + "tango-started x\n"
            await backend.vmms.copy_in(machine, inputs({"forged": forged} | make("cat forged; exit 92")), limit())
            ran = await follow(backend.vmms, machine)
        assert ran.output.startswith(forged.encode()) and ran.code == 2

    async def test_a_forged_end_is_not_the_end(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            forged = f"echo before; echo tango-ended {machine.nonce} 0 0; echo after; exit 3"
            await backend.vmms.copy_in(machine, inputs(make(forged)), limit())
            ran = await follow(backend.vmms, machine)
        assert ran.output.startswith(b"before\nafter\n") and ran.code == 2

    async def test_reserved_exit_codes_cannot_be_forged(self, backend: Backend) -> None:
        for code in (92, 124):
            kill_make = f"kill -9 $(cat /proc/$PPID/stat | cut -d' ' -f4); exit {code}"
            ran = await backend.run(make("echo ran", kill_make))
            assert ran.output.startswith(b"ran\n") and not ran.exit.timed_out

    async def test_a_death_by_signal_is_not_a_timeout(self, backend: Backend) -> None:
        ran = await backend.run(make("echo bye; kill -9 $PPID"))
        assert ran == Ran(Exit(137), b"bye\n")

    async def test_closing_the_output_is_not_the_end(self, backend: Backend) -> None:
        ran = await backend.run(make("echo shown; exec >&- 2>&-; sleep 0.3; exit 3"))
        assert ran.code == 2 and ran.output.startswith(b"shown\n")

    async def test_signals_have_their_default_meaning(self, backend: Backend) -> None:
        ran = await backend.run(make(SIGNALS))
        assert ran.output.split() == DEFAULTS

    async def test_a_job_may_delete_its_files(self, backend: Backend) -> None:
        ran = await backend.run(make("rm -rf /home/autograde/* /tmp/* .[a-z]* 2>/dev/null; echo gone"))
        assert ran == Ran(Exit(0), b"gone\n")


WHERE = """\
import os
first = sorted(os.sched_getaffinity(0))
try:
    os.sched_setaffinity(0, range(os.cpu_count()))
except OSError:
    pass
print(first, sorted(os.sched_getaffinity(0)), flush=True)
"""


class Hostile:
    """A job harms itself only, and sees nothing of the host or of others."""

    async def test_the_deadline_cannot_be_ignored_and_keeps_the_output_so_far(self, backend: Backend) -> None:
        """Also if the job has all the processes that it may have."""
        marker = f"3{uuid4().int % 10**9}"
        ignore = f"trap '' TERM INT HUP; setsid sleep {marker} & sleep {marker} & exec sh bomb.sh {marker}"
        job = {"ignore.sh": ignore, "bomb.sh": BOMB} | make("echo before; sh ignore.sh 2>/dev/null; echo after")
        ran = await backend.run(job, limit(timeout_s=2, processes=32), processes=32)
        assert ran.exit.timed_out and ran.output == b"before\n"
        await wait_until(lambda: not processes(marker), "the job's processes are gone")

    async def test_daemons_do_not_outlive_the_job(self, backend: Backend) -> None:
        marker = f"3{uuid4().int % 10**9}"
        daemon = f"(setsid sh -c 'trap \"\" HUP TERM; sleep {marker}; :' &) ; (setsid sleep {marker} >/dev/null 2>&1 &)"
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make(daemon, "echo done")), limit())
            assert await follow(backend.vmms, machine) == Ran(Exit(0), b"done\n")
            await wait_until(lambda: not processes(marker), "the daemons are gone before the machine is destroyed")

    async def test_a_fork_bomb_is_bounded_and_felt_by_nobody(self, backend: Backend) -> None:
        marker = f"3{uuid4().int % 10**9}"
        bomb = make(f"exec sh bomb.sh {marker}") | {"bomb.sh": BOMB}
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(processes(marker)))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        async with backend.machine(processes=32) as bombed:
            await backend.vmms.copy_in(bombed, inputs(bomb), limit(processes=32))
            await wait_until(lambda: most > 20, "the bomb went off")
            beside = await backend.run(make("for i in 1 2 3; do sh -c 'echo $$ >/dev/null; echo ok' & wait; done"))
            assert beside == Ran(Exit(0), b"ok\nok\nok\n")
        watching.cancel()
        assert most <= 40
        await wait_until(lambda: not processes(marker), "the bomb is gone")
        assert await backend.run(make("echo next")) == Ran(Exit(0), b"next\n")

    async def test_a_full_disk_is_the_jobs_own(self, backend: Backend) -> None:
        fill = make("dd if=/dev/zero of=big bs=64k count=1000", "echo not reached")
        full, beside = await asyncio.gather(
            backend.run(fill, disk_bytes=8 * MB),
            backend.run(make("dd if=/dev/zero of=big bs=64k count=200 2>/dev/null; wc -c <big"), disk_bytes=32 * MB),
        )
        assert b"No space left" in full.output and full.code == 2
        assert beside == Ran(Exit(0), b"13107200\n")

    async def test_a_file_has_a_largest_size(self, backend: Backend) -> None:
        ran = await backend.run(
            make("dd if=/dev/zero of=big bs=64k count=32", "echo not reached"), limit(file_bytes=MB)
        )
        assert ran.code == 2 and b"not reached" not in ran.output

    async def test_endless_output_can_be_left_and_destroyed(self, backend: Backend) -> None:
        marker = f"spam-{uuid4().hex}"
        async with backend.machine() as machine:
            await backend.vmms.copy_in(machine, inputs(make(f"exec yes {marker}")), limit())
            seen = 0
            async with aclosing(backend.vmms.copy_out(machine)) as output:  # type: ignore[type-var]
                async for chunk in output:
                    seen += len(chunk)
                    if seen > MB:
                        break
            async with asyncio.timeout(30):
                await backend.vmms.destroy_vm(machine)
        await wait_until(lambda: not processes(f"yes\0{marker}"), "the writer is gone")

    async def test_the_job_has_no_privilege(self, backend: Backend) -> None:
        ran = await backend.run(make("id -u; grep -E '^Cap(Eff|Prm|Inh|Amb)|NoNewPrivs' /proc/self/status"))
        uid, *status = ran.output.decode().splitlines()
        assert uid != "0"
        assert {line.split()[1] for line in status if line.startswith("Cap")} == {"0" * 16}
        assert "NoNewPrivs:\t1" in status

    async def test_the_job_inherits_no_open_file(self, backend: Backend) -> None:
        ran = await backend.run(make("ls /proc/self/fd"))  # the fourth is the listed directory itself
        assert ran.output.split() == [b"0", b"1", b"2", b"3"]

    async def test_no_file_of_the_host_is_visible(self, backend: Backend) -> None:
        name = f"secret-{uuid4().hex}"
        (backend.data_dir / name).write_text("the key")
        directory = os.open(backend.data_dir, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{directory}/{name}.sock")  # its own path may be too long for one
            os.close(directory)
            listener.listen()
            async with backend.machine() as other:
                await backend.vmms.copy_in(other, inputs({name: ""} | make("echo up; sleep 600")), limit())
                assert await first_output(backend.vmms, other) == b"up\n"
                look = f"find / -name '{name}*' -not -path '/proc/*' 2>/dev/null"
                read = f"cat {backend.data_dir}/{name} /etc/shadow /root/.profile 2>/dev/null"
                ran = await backend.run(make(f"{look}; {read}; echo looked"))
        assert ran.output == b"looked\n"

    async def test_no_process_of_the_host_is_visible(self, backend: Backend) -> None:
        marker = f"3{uuid4().int % 10**9}"
        look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; ls -d /proc/[0-9]* | wc -l; kill -9 -1"
        with subprocess.Popen(["sleep", marker]) as beside:
            try:
                ran = await backend.run(make(look))
                assert beside.poll() is None
            finally:
                beside.kill()
        assert marker.encode() not in ran.output
        assert int(ran.output.split(b"\n")[-2]) < 12

    async def test_without_network_there_is_none(self, backend: Backend) -> None:
        called = asyncio.Event()
        server = await asyncio.start_server(lambda _r, _w: called.set(), "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        async with server:
            call = f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}' 2>/dev/null && echo connected || echo refused"
            ran = await backend.run(make(call, "tail -n +3 /proc/net/dev | cut -d: -f1"))
        assert ran.output.split() == [b"refused", b"lo"] and not called.is_set()


class Lifetime:
    """Machines are found, followed and removed by whoever comes."""

    async def test_a_machine_keeps_to_its_cores_and_what_it_uses_is_counted(self, backend: Backend) -> None:
        if not backend.vmms.capabilities.cpusets:
            pytest.skip("the back-end keeps no machine to some cores")
        core = max(os.sched_getaffinity(0))
        step = Step()
        files = {"where.py": WHERE} | make("python3 where.py", f"{step}; :")
        async with backend.machine(cpuset=str(core)) as machine:
            before = await backend.vmms.usage(machine)
            await backend.vmms.copy_in(machine, inputs(files), limit())
            assert await first_output(backend.vmms, machine) == f"[{core}] [{core}]\n".encode()
            await step.reached()
            after = await backend.vmms.usage(machine)
            step.go_on()
            assert (await follow(backend.vmms, machine)).code == 0
        assert (before is None) == (after is None)
        assert before is None or after is None or 0 <= before.cpu_s < after.cpu_s

    async def test_eight_at_a_time(self, backend: Backend) -> None:
        ran = await asyncio.gather(*(backend.run(make(f"sleep 0.1; echo {i}")) for i in range(8)))
        assert ran == [Ran(Exit(0), f"{i}\n".encode()) for i in range(8)]

    async def test_a_machine_is_listed_until_destroyed(self, backend: Backend) -> None:
        second = await backend.open()
        try:
            async with backend.machine() as machine:
                assert await second.get_vms() == await backend.vmms.get_vms() == [machine]
                assert machine.owner == "tester" and machine.spec == backend.spec()
                await second.destroy_vm(machine)
                assert await second.get_vms() == await backend.vmms.get_vms() == []
        finally:
            await second.close()

    async def test_destroying_what_is_gone_succeeds(self, backend: Backend) -> None:
        async with backend.machine() as machine:
            await backend.vmms.destroy_vm(machine)
            await backend.vmms.destroy_vm(machine)
        await backend.vmms.destroy_vm(Machine(id="never-was", spec=backend.spec(), nonce="x"))

    async def test_an_unfed_machine_can_be_destroyed_at_once(self, backend: Backend) -> None:
        for _ in range(3):
            machine = await backend.vmms.initialize_vm(backend.spec(), "tester")
            await backend.vmms.destroy_vm(machine)
        assert await backend.vmms.get_vms() == []

    async def test_a_prestarted_machine_waits_for_its_job(self, backend: Backend) -> None:
        if not backend.vmms.capabilities.prestart:
            pytest.skip("this back-end makes machines for known jobs only")
        async with backend.machine() as idle:
            assert await backend.run(make("echo another")) == Ran(Exit(0), b"another\n")
            await backend.vmms.copy_in(idle, inputs(make("echo at last")), limit())
            assert await follow(backend.vmms, idle) == Ran(Exit(0), b"at last\n")

    async def test_a_successor_follows_a_running_job_from_its_first_byte(self, backend: Backend) -> None:
        lines = [f"echo {i}; sleep 0.1" for i in range(8)]
        async with adopted(backend, make(*lines), limit()) as (successor, machine):
            assert await follow(successor, machine) == Ran(Exit(0), b"0\n1\n2\n3\n4\n5\n6\n7\n")

    async def test_a_successor_sees_the_end_that_nobody_saw(self, backend: Backend) -> None:
        async with adopted(backend, make("echo one; exit 1"), limit()) as (successor, machine):
            ran = await follow(successor, machine)
            assert ran.code == 2 and ran.output.startswith(b"one\n")

    async def test_the_deadline_holds_without_a_dispatcher(self, backend: Backend) -> None:
        async with adopted(backend, make("echo one; sleep 600"), limit(timeout_s=2)) as (successor, machine):
            ran = await follow(successor, machine)
            assert ran.exit.timed_out and ran.output == b"one\n"


class VmmsContract(Delivery, Following, Hostile, Lifetime):
    """All of it."""
