"""A double of Tashi's cluster manager, with a real sshd for each instance.

It shares no code with our client: the messages are written from rpyc's and Python 2's rules, the pickles
by Python's own pickler, with the types under the names that Tashi has. What real rpyc and Python 2.7 say
is in tests/fixtures/tashi_messages.json.
"""

from __future__ import annotations

import asyncio
import copy
import io
import json
import pickle
import re
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ClassVar

from support.places import own_network, own_port
from support.vm import SshVm, host_key

REQUEST, REPLY, EXCEPTION = 1, 2, 3
CLOSE, GETROOT, GETATTR, CALL, INSPECT = 2, 3, 4, 7, 16
PENDING, ACTIVATING, RUNNING, DESTROYING, EXITED = 1, 2, 3, 12, 15
COMPRESSED_FROM = 3000
_addresses = cycle(range(2, 250))


FIELDS = "id vmId hostId decayed state userId name cores memory disks nics hints groupName"


class Instance:
    def __init__(self, **fields: Any) -> None:
        self.nics: list[Any] = []
        self.__dict__.update(dict.fromkeys(FIELDS.split()) | fields)


class DiskConfiguration: ...


class NetworkConfiguration: ...


class TashiException(Exception):
    def __init__(self, errno: int = 0, msg: str = "") -> None:
        self.errno, self.msg = errno, msg

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), self.__dict__


def _as_tashis(*types: type) -> None:
    """Pickles name a class by its module."""
    for name in ("tashi", "tashi.rpycservices", "tashi.rpycservices.rpyctypes"):
        module = sys.modules.setdefault(name, ModuleType(name))
    for kind in types:
        kind.__module__ = module.__name__
        setattr(module, kind.__name__, kind)


_as_tashis(Instance, DiskConfiguration, NetworkConfiguration, TashiException)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Protocol 0 as Python 2 writes it, where text is bytes."""

    dispatch = copy.copy(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: str) -> None:
        self.write(b"S" + repr(text.encode())[1:].encode() + b"\n")
        self.memoize(text)

    dispatch[str] = save_text


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, 0, fix_imports=True).dump(value)
    return file.getvalue()


def brine(value: Any) -> bytes:
    if value is None:
        return b"\x00"
    if isinstance(value, int):
        digits = b"%d" % value
        return bytes([value + 0x50]) if -0x30 <= value < 0xA0 else bytes([0x16, len(digits)]) + digits
    if isinstance(value, bytes):
        size = len(value)
        head = b"\x01" if not size else bytes([0x09 + size]) if size < 5 else bytes([0x0E, size]) if size < 256 else b""
        return (head or b"\x0f" + struct.pack("!L", size)) + value
    items = b"".join(map(brine, value))
    return (
        b"\x02" if not value else bytes([0x0F + len(value)]) if len(value) < 5 else bytes([0x14, len(value)])
    ) + items


def unbrine(file: io.BytesIO) -> Any:
    tag = file.read(1)[0]
    if 0x20 <= tag < 0xF0:
        return tag - 0x50
    if tag in (0x00, 0x01, 0x02):
        return {0x00: None, 0x01: b"", 0x02: ()}[tag]
    if 0x0A <= tag <= 0x0D:
        return file.read(tag - 0x09)
    if 0x10 <= tag <= 0x13:
        return tuple(unbrine(file) for _ in range(tag - 0x0F))
    size = file.read(1)[0] if tag in (0x0E, 0x16) else struct.unpack("!L", file.read(4))[0]
    return int(file.read(size)) if tag == 0x16 else file.read(size)


def message(value: Any, *, compressed_from: int = COMPRESSED_FROM) -> bytes:
    data = brine(value)
    packed = len(data) > compressed_from
    data = zlib.compress(data, 1) if packed else data
    return struct.pack("!LB", len(data), packed) + data + b"\n"


class ClusterManager:
    """The manager, with its hosts and what runs there. What is set from outside makes it ill."""

    def __init__(self, directory: Path) -> None:
        """Keeps in the directory the key that its VMs let in; all of them have one host key."""
        ours, self._authorized_key = host_key(directory, "ours")
        self.private_key = directory / "id"
        self.private_key.write_text(ours)
        private, self.host_key = host_key(directory)
        keys = {"ed25519_private": private, "ed25519_public": self.host_key}
        self._user_data = "#cloud-config\n" + json.dumps({"ssh_keys": keys})
        self.boot_s = 0.0
        self.shared: dict[Path, str] = {}
        """Files of this host, and where VMs see them."""
        self.instances: dict[int, Instance] = {}
        self.vms: dict[int, SshVm] = {}
        self.calls: list[str] = []
        self.answer: bytes | None = None
        """What every call is answered with."""
        self.refused: set[str] = set()
        """Calls that fail before anything is done."""
        self.cut: set[str] = set()
        """Calls whose connection is closed after they were done."""
        self.slow_s = 0.0
        """Between what is done and its answer."""
        self.going = asyncio.Event()
        self.going.set()
        """While it is not set, calls are taken, and done later."""
        self.room = asyncio.Event()
        self.room.set()
        """While it is not set, no host takes a new instance."""
        self.mute_next = 0
        """So many of those that boot next run, and nobody is at their address."""
        self._away = False
        self._ids = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> ClusterManager:
        await self.start(own_port())
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for vm in list(self.vms.values()):
            await asyncio.to_thread(vm.kill)

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """The instances stay."""
        self._server.close()
        self._break()

    def leave(self) -> None:
        """Until it comes back, whoever calls is cut off; what was just asked for may be done."""
        self._away = True
        self._break()

    def come_back(self) -> None:
        self._away = False

    def _break(self) -> None:
        for writer in self._connections:
            writer.transport.abort()

    # -- the protocol ------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._away:
            writer.transport.abort()
            return
        self._connections.add(writer)
        objects: dict[int, str] = {}
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                length, packed = struct.unpack("!LB", await reader.readexactly(5))
                data = (await reader.readexactly(length + 1))[:-1]
                said, seq, (handler, (label, arguments)) = unbrine(
                    io.BytesIO(zlib.decompress(data) if packed else data)
                )
                assert (said, label) == (REQUEST, 1)
                if handler == CLOSE:
                    break
                writer.write(await self._handled(objects, seq, handler, arguments))
                await writer.drain()
        self._connections.discard(writer)
        writer.transport.abort()

    async def _handled(self, objects: dict[int, str], seq: int, handler: int, arguments: Any) -> bytes:
        if handler in (GETROOT, GETATTR):
            name = arguments[1].decode() if handler == GETATTR else ""
            if name and name not in self._rpcs:
                raised = ((b"exceptions", b"AttributeError"), (b"RPC does not exist",), (), b"Traceback: ...")
                return message((EXCEPTION, seq, raised))
            number = 140_000_000_000_000 + len(objects)
            objects[number] = name
            return message((REPLY, seq, (4, (number, b"function" if name else b"ManagerService", b"tashi"))))
        if handler == INSPECT:
            return message((REPLY, seq, (1, ())))
        assert handler == CALL
        number, (argument,), keywords = arguments
        assert keywords == ()
        return message((REPLY, seq, (1, await self._called(objects[number], argument))))

    async def _called(self, name: str, argument: bytes) -> bytes:
        self.calls.append(name)
        await self.going.wait()
        try:
            if name in self.refused:
                raise RuntimeError("of the test")
            result = await self._rpcs[name](self, *pickle.loads(argument))
        except Exception as e:
            result = e
        if name in self.cut:
            raise ConnectionError
        await asyncio.sleep(self.slow_s)
        return self.answer if self.answer is not None else pickled(result)

    # -- the calls ---------------------------------------------------------------------------------

    async def _create(self, instance: Instance) -> Instance:
        instance.name = re.sub(r"[^A-Za-z0-9.-]", "", instance.name)
        instance.decayed, instance.state = False, PENDING
        if any(other.name == instance.name for other in self.instances.values()):
            raise TashiException(11, f"The name {instance.name} is already in use")
        if not 1 <= instance.cores <= 8:
            raise TashiException(
                11, "Number of cores must be <= 8" if instance.cores else "Number of cores must be >= 1"
            )
        if not 1 <= instance.memory <= 8192:
            raise TashiException(11, "Amount of memory must be <= 8192")
        # The manager's SQL store puts this between quotes, into a field of that size.
        assert '"' not in repr(instance.hints) and len(repr(instance.hints)) <= 1024
        instance.id = next(self._ids)
        self.instances[instance.id] = instance
        task = asyncio.create_task(self._activate(instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return copy.copy(instance)

    async def _activate(self, instance: Instance) -> None:
        await asyncio.sleep(self.boot_s / 2)
        await self.room.wait()
        if instance.id not in self.instances:
            return
        instance.state, instance.hostId, instance.vmId = ACTIVATING, 1, instance.id
        await asyncio.sleep(self.boot_s / 2)
        if instance.state == DESTROYING:
            del self.instances[instance.id]
            return
        address = f"127.{own_network()}.100.{next(_addresses)}"
        vm = SshVm(address, self._authorized_key, self._user_data, instance.name, shared=self.shared)
        self.vms[instance.id] = vm
        if self.mute_next:
            self.mute_next -= 1
        else:
            vm.start()
        instance.nics[0].ip = address
        instance.state = RUNNING

    async def _destroy(self, number: int) -> None:
        instance = self.instances.get(number)
        if instance is None:
            raise TashiException(2, f"No such instanceId - {number}")
        before, instance.state = instance.state, DESTROYING
        if before == PENDING:
            del self.instances[number]
        elif number in self.vms:
            await asyncio.to_thread(self.vms.pop(number).kill)
            asyncio.get_running_loop().call_later(0.1, self.instances.pop, number, None)

    def number_of(self, machine: str) -> int | None:
        """The running instance of that name."""
        running = (one for one in self.instances.values() if one.name == machine and one.state == RUNNING)
        return next((one.id for one in running), None)

    async def end(self, number: int) -> None:
        """What whoever reaches the manager may do at any time."""
        with suppress(TashiException):
            await self._destroy(number)

    async def crash(self, number: int, *, seen: bool = True) -> None:
        """The VM is dead; if it was seen, its host tells of it, and it is not listed any more."""
        await asyncio.to_thread(self.vms[number].kill)
        if seen:
            self.forget(number)

    def forget(self, number: int) -> None:
        """A host tells of an instance that has ended."""
        self.vms.pop(number, None)
        self.instances.pop(number, None)

    async def _list(self) -> list[Instance]:
        return list(self.instances.values())

    _rpcs: ClassVar[dict[str, Callable[..., Any]]] = {"createVm": _create, "destroyVm": _destroy, "getInstances": _list}
