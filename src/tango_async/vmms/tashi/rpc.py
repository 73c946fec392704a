"""The three calls of Tashi's cluster manager that we need, over rpyc 3's wire.

Each call has a connection of its own, so that there is nothing to repair after one that was cut off,
cancelled or answered with nonsense; the manager has a thread a connection anyway. A call takes three
questions: for the root object, for its function, and for what that answers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import IntEnum

from ...errors import VmmsError, VmmsUnavailable
from . import pickles
from .brine import BadMessage, Value, frame, read_frame
from .pickles import BadPickle, Record

CALL_S = 10.0
"""Longest time for one call, as with Tashi's own clients."""
CALLS = 8
"""At a time; the others wait."""
LARGE_BYTES = 16 * 1024
"""Pickles from this size on are read in a thread."""

_REQUEST, _REPLY, _EXCEPTION = 1, 2, 3
_GETROOT, _GETATTR, _CALL = 3, 4, 7
_VALUE, _REFERENCE = 1, 4

NO_SUCH_INSTANCE, INVALID_INSTANCE = 2, 11
"""Numbers of a TashiError: it is not there; it cannot be made, as with too many cores."""


class State(IntEnum):
    PENDING = 1
    ACTIVATING = 2
    RUNNING = 3
    PAUSING = 4
    PAUSED = 5
    UNPAUSING = 6
    SUSPENDING = 7
    RESUMING = 8
    MIGRATE_PREP = 9
    MIGRATE_TRANS = 10
    SHUTTING_DOWN = 11
    DESTROYING = 12
    ORPHANED = 13
    HELD = 14
    EXITED = 15
    SUSPENDED = 16


class TashiError(VmmsError):
    """The cluster manager refused a call."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


@dataclass(frozen=True, slots=True)
class Instance:
    """One VM of the cluster, whoever made it."""

    id: int
    name: str
    state: State
    ip: str
    """Of its first network card; "" unless the cluster manages addresses."""
    hints: dict[str, Value]

    @classmethod
    def read(cls, value: Value) -> Instance:
        """Raises ValueError if it is none."""
        if not isinstance(value, Record) or value.kind != "Instance":
            raise ValueError("something is no instance")
        fields = value.fields
        number, name, state, nics, hints = (fields.get(key) for key in ("id", "name", "state", "nics", "hints"))
        if type(number) is not int or type(state) is not int:
            raise ValueError("an instance has no id or no state")
        first = nics[0] if isinstance(nics, list) and nics else None
        ip = first.fields.get("ip") if isinstance(first, Record) else None
        return cls(
            id=number,
            name=name if isinstance(name, str) else "",
            state=State(state),
            ip=ip if isinstance(ip, str) else "",
            hints=hints if isinstance(hints, dict) else {},
        )


class ClusterManager:
    """All its calls raise VmmsUnavailable, naming the settings, and TashiError."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._room = asyncio.Semaphore(CALLS)

    async def create_vm(self, instance: Record) -> Instance:
        """If this fails, the instance may be there all the same, under its name."""
        (made,) = self._instances([await self._call("createVm", instance)])
        return made

    async def destroy_vm(self, number: int) -> None:
        await self._call("destroyVm", number)

    async def get_instances(self) -> list[Instance]:
        return self._instances(await self._call("getInstances"))

    def _instances(self, answer: Value) -> list[Instance]:
        if not isinstance(answer, list):
            raise self._unavailable("it answered with no list of instances")
        try:
            return [Instance.read(value) for value in answer]
        except ValueError as e:
            raise self._unavailable(f"it answered with what is not to be understood: {e}") from e

    async def _call(self, name: str, *arguments: Value) -> Value:
        async with self._room:
            try:
                async with asyncio.timeout(CALL_S):
                    answer = await self._answer(name, pickles.dumps(arguments))
            except TimeoutError as e:
                raise self._unavailable(f"no answer to {name} within {CALL_S:.0f} s") from e
            except asyncio.IncompleteReadError as e:
                raise self._unavailable(f"it closed the connection before it had answered {name}") from e
            except OSError as e:
                raise self._unavailable(e.strerror or str(e)) from e
            except BadMessage as e:
                raise self._unavailable(f"it does not speak Tashi's protocol: {e}") from e
        try:
            large = len(answer) > LARGE_BYTES
            value = await asyncio.to_thread(pickles.loads, answer) if large else pickles.loads(answer)
        except BadPickle as e:
            raise self._unavailable(f"the pickle that it answered {name} with is refused: {e}") from e
        if isinstance(value, Record) and value.is_error:
            raise _error(name, value)
        return value

    async def _answer(self, name: str, pickle: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            connection = _Connection(reader, writer)
            root = await connection.ask(_REFERENCE, _GETROOT)
            function = await connection.ask(_REFERENCE, _GETATTR, root, name.encode())
            answer = await connection.ask(_VALUE, _CALL, function, (pickle,), ())
        finally:
            writer.transport.abort()
        if not isinstance(answer, bytes):
            raise BadMessage("the answer is no pickle")
        return answer

    def _unavailable(self, why: str) -> VmmsUnavailable:
        return VmmsUnavailable(f"Tashi's cluster manager at {self._host}:{self._port} (tashi.host, tashi.port): {why}")


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._asked = 0

    async def ask(self, label: int, handler: int, *arguments: Value) -> Value:
        """The value of the reply, or the id of the object there. Raises BadMessage, TashiError."""
        self._asked += 1
        self._writer.write(frame((_REQUEST, self._asked, (handler, (_VALUE, arguments)))))
        await self._writer.drain()
        match await read_frame(self._reader):
            case (message, asked, content) if message == _REPLY and asked == self._asked:
                return _unboxed(label, content)
            case (message, asked, content) if message == _EXCEPTION and asked == self._asked:
                raise TashiError(f"Tashi's cluster manager failed: {_raised(content)}")
        raise BadMessage("a message is no answer to what was asked")


def _unboxed(label: int, content: Value) -> Value:
    match content:
        case (is_label, value) if is_label == label == _VALUE:
            return value
        case (is_label, (int(number), bytes(), bytes())) if is_label == label == _REFERENCE:
            return number
    raise BadMessage("an answer holds what was not asked for")


def _raised(content: Value) -> str:
    """rpyc's exceptions are ((module, name), arguments, …)."""
    match content:
        case ((_, bytes(name)), tuple(arguments), *_):
            words = [word.decode(errors="replace") for word in arguments if isinstance(word, bytes)]
            return f"{name.decode(errors='replace')[:80]}: {' '.join(words)[:300]}"
    return "for a reason that it did not tell"


def _error(name: str, error: Record) -> TashiError:
    if error.kind == "TashiException":
        number, message = error.fields.get("errno"), error.fields.get("msg")
    else:
        number, message = 0, " ".join(str(word)[:300] for word in error.arguments if isinstance(word, str | int))
    text = f"Tashi refused {name}: {error.kind.removeprefix('exceptions.')}: {str(message)[:300]}"
    return TashiError(text, number if isinstance(number, int) else 0)
