"""Tashi's protocol: as real rpyc and Python 2.7 speak it, and from a server that means harm."""

from __future__ import annotations

import asyncio
import json
import pickle
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tashi import brine as written
from support.tashi import message
from tango_async.errors import VmmsUnavailable
from tango_async.vmms.tashi import brine, pickles, rpc
from tango_async.vmms.tashi.pickles import BadPickle, Record
from tango_async.vmms.tashi.rpc import ClusterManager, State, TashiError

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/tashi_messages.json").read_text())
"""What was said in each call: recorded between this client, and rpyc 3.4.4 with cPickle on Python 2.7."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[ClusterManager]:
    ended: list[asyncio.Event] = []

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(end := asyncio.Event())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
        end.set()

    server = await asyncio.start_server(handled, "127.0.0.1")
    async with server:
        yield ClusterManager("127.0.0.1", server.sockets[0].getsockname()[1])
        for end in ended:
            await end.wait()


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = struct.unpack("!L", data[:4])[0] + 6
        found.append(data[:size])
        data = data[size:]
    return found


def replay(call: str) -> Handler:
    """Answers what was answered, if it is asked what was asked."""
    asked, answered = (frames(bytes.fromhex(RECORDED[call][way])) for way in ("asked", "answered"))

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for question, answer in zip(asked, answered, strict=True):
            assert await reader.readexactly(len(question)) == question
            writer.write(answer)
        await reader.read()

    return handler


def says(*answers: bytes) -> Handler:
    """Answers each question with the next of these, whatever was asked; then hangs up."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await brine.read_frame(reader)
            writer.write(answer)
            await writer.drain()

    return handler


ROOT = message((2, 1, (4, (7, b"ManagerService", b"tashi"))))
FUNCTION = message((2, 2, (4, (8, b"function", b"tashi"))))


def answers(pickled: bytes) -> Handler:
    return says(ROOT, FUNCTION, message((2, 3, (1, pickled))))


def instance(name: str, cores: int = 2) -> Record:
    disk = Record("DiskConfiguration", {"uri": "a.img", "persistent": False})
    card = Record("NetworkConfiguration", {"mac": "52:54:00:00:00:01", "network": 1, "ip": None})
    fields = {"name": name, "cores": cores, "memory": 512, "userId": 42, "disks": [disk], "nics": [card]}
    return Record("Instance", fields | {"hints": {"tango": "abc"}})


@pytest.mark.parametrize("protocol", [0, 2])
class TestAsRecorded:
    """The real server took these bytes from us, and said these."""

    async def test_an_instance_is_made(self, protocol: int) -> None:
        async with served(replay(f"createVm, protocol {protocol}")) as manager:
            made = await manager.create_vm(instance("tango-1_x"))
        assert (made.id, made.name, made.state) == (1, "tango-1x", State.PENDING)
        assert (made.ip, made.hints) == ("", {"tango": "abc"})

    @pytest.mark.parametrize(
        ("call", "asked", "why"),
        [
            ("createVm of a name in use", instance("tango-1x"), "The name tango-1x is already in use"),
            ("createVm of too many cores", instance("b", 9), "Number of cores must be <= 8"),
        ],
    )
    async def test_a_refused_instance_is_told(self, protocol: int, call: str, asked: Record, why: str) -> None:
        async with served(replay(f"{call}, protocol {protocol}")) as manager:
            with pytest.raises(TashiError, match=f"Tashi refused createVm: TashiException: {why}") as raised:
                await manager.create_vm(asked)
        assert raised.value.number == 11

    async def test_a_compressed_list_of_instances(self, protocol: int) -> None:
        async with served(replay(f"getInstances, compressed, protocol {protocol}")) as manager:
            found = {one.id: one for one in await manager.get_instances()}
        assert {found[number].name for number in range(2, 42)} == {f"tango-{number}" for number in range(2, 42)}

    async def test_instances_of_others_may_hold_anything(self, protocol: int) -> None:
        async with served(replay(f"getInstances, protocol {protocol}")) as manager:
            (other,) = [one for one in await manager.get_instances() if one.id == 900]
        assert (other.name, other.state, other.ip) == ("other", State.ORPHANED, "")
        assert other.hints == {"a": "☃", "b": "\ufffd", "c": 1.5, "d": [1, (2, 3)], "e": 300, "f": 2**40}

    async def test_an_instance_is_destroyed(self, protocol: int) -> None:
        async with served(replay(f"destroyVm, protocol {protocol}")) as manager:
            await manager.destroy_vm(1)

    async def test_an_instance_that_is_not_there(self, protocol: int) -> None:
        async with served(replay(f"destroyVm of none, protocol {protocol}")) as manager:
            with pytest.raises(TashiError, match="No such instanceId - 1") as raised:
                await manager.destroy_vm(1)
        assert raised.value.number == rpc.NO_SUCH_INSTANCE

    async def test_a_servers_own_defect_is_told(self, protocol: int) -> None:
        async with served(replay(f"getHosts, protocol {protocol}")) as manager:
            with pytest.raises(TashiError, match="Tashi refused getHosts: AttributeError: it's broken"):
                await manager._call("getHosts")

    async def test_an_unknown_call_is_told(self, protocol: int) -> None:
        async with served(replay(f"nothing, protocol {protocol}")) as manager:
            with pytest.raises(TashiError, match="manager failed: AttributeError: RPC does not exist"):
                await manager._call("nothing")


def nested(depth: int) -> bytes:
    return b"\x10" * depth + b"\x00"


BROKEN = {
    "another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak Tashi's protocol"),
    "half a message": (ROOT[:-9], "closed the connection before it had answered getInstances"),
    "nothing": (b"", "closed the connection"),
    "a huge message": (struct.pack("!LB", 2**32 - 1, 0), "a message of 4294967295 bytes"),
    "no newline": (ROOT[:-1] + b"x", "does not end where it should"),
    "no zlib": (struct.pack("!LB", 4, 1) + b"abcd\n", "cannot be decompressed"),
    "nested": (struct.pack("!LB", 501, 0) + nested(500) + b"\n", "nested too deeply"),
    "an unknown tag": (struct.pack("!LB", 1, 0) + b"\xff\n", "unknown tag 0xff"),
    "more than it says": (struct.pack("!LB", 2, 0) + b"\x00\x00\n", "follows the end"),
    "less than it says": (struct.pack("!LB", 5, 0) + b"\x15\xff\xff\xff\xff\n", "cut off"),
    "a long number": (struct.pack("!LB", 257, 0) + b"\x16\xff" + b"9" * 255 + b"\n", "too many digits"),
    "no text": (struct.pack("!LB", 4, 0) + b"\x08\x0b\xff\xfe\n", "holds what it should not"),
    "another's answer": (message((2, 9, (4, (7, b"a", b"b")))), "no answer to what was asked"),
    "a question": (message((1, 1, (3, (1, ())))), "no answer to what was asked"),
    "a value for an object": (message((2, 1, (1, b"x"))), "holds what was not asked for"),
    "no message": (message(5), "no answer to what was asked"),
}


def bomb() -> bytes:
    data = zlib.compress(b"\x0f" + struct.pack("!L", 1 << 30) + bytes(64 << 20), 9)
    return struct.pack("!LB", len(data), 1) + data + b"\n"


class TestAHostileServer:
    """Nothing that is answered does more than fail the call, in words that name the settings."""

    @pytest.mark.parametrize("what", BROKEN)
    async def test_a_broken_message(self, what: str) -> None:
        answer, why = BROKEN[what]
        async with served(says(answer)) as manager:
            with pytest.raises(VmmsUnavailable, match=rf"\(tashi.host, tashi.port\): .*{why}"):
                await manager.get_instances()

    async def test_a_bomb_of_zeros(self) -> None:
        async with served(says(bomb())) as manager:
            with pytest.raises(VmmsUnavailable, match="a compressed message is too large"):
                await manager.get_instances()

    async def test_one_that_never_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        monkeypatch.setattr(rpc, "CALL_S", 0.2)
        async with served(hang) as manager:
            with pytest.raises(VmmsUnavailable, match=r"tashi.host.*no answer to getInstances within"):
                await asyncio.gather(*(manager.get_instances() for _ in range(20)))

    async def test_one_that_is_not_there(self) -> None:
        async with served(says()) as manager:
            pass
        with pytest.raises(VmmsUnavailable, match=r"tashi.host.*Connect call failed"):
            await manager.get_instances()
        with pytest.raises(VmmsUnavailable, match=r"no.such.host.invalid:1 \(tashi.host, tashi.port\): .*"):
            await ClusterManager("no.such.host.invalid", 1).get_instances()

    async def test_a_pickle_that_would_run_something(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return Path.touch, (tmp_path / "ran",)

        for protocol in range(6):
            async with served(answers(pickle.dumps(Evil(), protocol))) as manager:
                with pytest.raises(VmmsUnavailable, match=r"the pickle .*is refused: byte \d+: "):
                    await manager.get_instances()
        assert not (tmp_path / "ran").exists()
        pickle.loads(pickle.dumps(Evil()))
        assert (tmp_path / "ran").exists(), "the pickles were harmless"

    async def test_answers_that_are_no_instances(self) -> None:
        for value, why in [
            (None, "no list"),
            ([1], "something is no instance"),
            ([Record("DiskConfiguration", {})], "something is no instance"),
            ([Record("Instance", {"id": "1", "state": 1})], "no id"),
            ([Record("Instance", {"id": 1, "state": None})], "no state"),
            ([Record("Instance", {"id": 1, "state": 99})], "99 is not a valid State"),
        ]:
            async with served(answers(pickles.dumps(value))) as manager:
                with pytest.raises(VmmsUnavailable, match=why):
                    await manager.get_instances()

    async def test_a_call_after_a_broken_one_is_as_the_first(self) -> None:
        handlers = [says(b"garbage!"), says(ROOT[:5]), answers(pickles.dumps([]))]

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await handlers.pop(0)(reader, writer)

        async with served(handler) as manager:
            for _ in range(2):
                with pytest.raises(VmmsUnavailable):
                    await manager.get_instances()
            assert await manager.get_instances() == []


def long_memo() -> bytes:
    """Python's own unpickler takes gigabytes for it."""
    return b"\x80\x02Nr\xff\xff\xff\x7f."


REFUSED = {
    "a function": (b"cos\nsystem\n(S'true'\ntR.", "os.system is not admitted"),
    "a function of ours": (b"ctashi.rpycservices.rpyctypes\nclean\n(tR.", "clean is not admitted"),
    "a dotted name": (b"cexceptions\nException.__init__\n(tR.", "is not admitted"),
    "an old instance": (b"(ios\nsystem\n.", "opcode b'i' is not admitted"),
    "a built object": (b"(cos\nsystem\no.", "os.system is not admitted"),
    "a persistent id": (b"Px\n.", "opcode b'P' is not admitted"),
    "an extension": (b"\x80\x02\x82\x01.", "is not admitted"),
    "a name from the stack": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "protocol is none of Python 2's"),
    "a call of a value": (b"(lN(tR.", "called"),
    "a call of a base": (b"c__builtin__\nobject\n(tR.", "called"),
    "another reconstruction": (b"ccopy_reg\n_reconstructor\n(NNNtR.", "called"),
    "a state that is none": (b"cexceptions\nKeyError\n(tR(lb.", "an object has no fields"),
    "a state of a value": (b"(l}b.", "no Record to add to"),
    "an index into the memo": (b"h\x05.", "refers to nothing"),
    "a remembered mark": (b"(q\x00h\x00.", "refers to nothing"),
    "a key that is no text": (b"(d(I1\nI2\ntI3\ns.", "a key is no text"),
    "a key without a value": (b"}(S'a'\nu.", "a key is no text"),
    "deep lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "nested too deeply"),
    "deep tuples": (b"N" + b"\x85" * 100_000 + b".", "nested too deeply"),
    "deep tuples as a key": (b"}N" + b"\x85" * 100_000 + b"Ns.", "nested too deeply"),
    "a list in itself": (b"]q\x00h\x00a.", "nested too deeply"),
    "a dict in its list": (b"]q\x01}q\x00ah\x00S'a'\nh\x01s.", "changes after it was used"),
    "a long number": (b"L" + b"9" * 1000 + b"L\n.", "too many digits"),
    "a long binary number": (b"\x8a\xff" + b"9" * 255 + b".", "too many digits"),
    "a text of negative length": (b"T\xff\xff\xff\xff.", "cut off"),
    "a text without an end": (b"S'abc\n.", "no quotes"),
    "an unknown escape": (b"S'\\x'\n.", "ValueError"),
    "a number that is none": (b"Iabc\n.", "ValueError"),
    "nothing": (b"", "cut off"),
    "no value": (b".", "a value is missing"),
    "a mark only": (b"(.", "a value is missing"),
    "no mark": (b"NNe.", "a mark is missing"),
    "two values": (b"NN.", "follows its end"),
    "more": (b"N.N", "follows its end"),
}


class TestPickles:
    """Only plain values come out, or BadPickle."""

    @pytest.mark.parametrize("what", REFUSED)
    def test_what_is_refused(self, what: str) -> None:
        data, why = REFUSED[what]
        with pytest.raises(BadPickle, match=rf"^byte \d+: .*{why}"):
            pickles.loads(data)

    def test_a_large_index_takes_no_room(self) -> None:
        assert pickles.loads(long_memo()) is None

    def test_empty_tuples_may_be_many(self) -> None:
        assert pickles.loads(b"())\x86)t.") == (((), ()), ()), "there is one object for all"

    def test_what_python_2_pickles_is_read_whole(self) -> None:
        for call, ways in RECORDED.items():
            *_, last = frames(bytes.fromhex(ways["answered"]))
            if not call.startswith(("nothing", "getInstances, compressed")):
                data = brine.loads(last[5:-1])[2][1]
                pickles.loads(data)
                for end in range(len(data)):
                    with pytest.raises(BadPickle):
                        pickles.loads(data[:end])

    @given(st.data())
    def test_a_changed_byte_is_a_value_or_refused(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(["createVm, protocol 0", "getInstances, protocol 2"]))
        pickled = bytearray(brine.loads(frames(bytes.fromhex(RECORDED[call]["answered"]))[-1][5:-1])[2][1])
        for _ in range(data.draw(st.integers(1, 4))):
            pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
        with suppress(BadPickle):
            pickles.loads(bytes(pickled))

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_value_or_refused(self, data: bytes) -> None:
        with suppress(BadPickle):
            pickles.loads(data + b".")
        with suppress(brine.BadMessage):
            brine.loads(data)

    VALUES = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**99), 2**99) | st.text(max_size=300),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )

    @given(VALUES)
    def test_what_we_write_is_what_is_read(self, value: pickles.Value) -> None:
        assert pickles.loads(pickles.dumps(value)) == value
        assert pickle.loads(pickles.dumps(value), encoding="utf-8") == value

    @given(st.recursive(st.none() | st.integers(-(10**30), 10**30) | st.binary(max_size=300), st.tuples, max_leaves=4))
    def test_brine_is_what_rpyc_writes(self, value: brine.Value) -> None:
        assert brine.dumps(value) == written(value)
        assert brine.loads(written(value)) == value
