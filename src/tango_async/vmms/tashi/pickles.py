"""The pickles that Tashi's calls carry, read and written without Python's own unpickler.

That one can run anything a pickle names, take gigabytes for twenty bytes (an index into its memo), and
crash in the hash of a nested key. This one knows the opcodes that Python 2's protocols 0 to 2 use for
plain values and for Tashi's few types. It looks nothing up and calls nothing: an object becomes a Record.
What comes out is a tree: bounded in depth, without a cycle.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MODULE = "tashi.rpycservices.rpyctypes"
TYPES = frozenset({"Instance", "DiskConfiguration", "NetworkConfiguration", "TashiException"})
MAX_DEPTH = 16
MAX_DIGITS = 32

Value = Any
"""None, bool, int, float, str, list, tuple, dict with str keys, or Record."""


class BadPickle(ValueError):
    """Not a pickle of ours; the message says at which byte, and what is wrong with it."""


@dataclass(slots=True)
class Record:
    """An object: one of TYPES, or an exception as `exceptions.NAME`, whose arguments are in `arguments`."""

    kind: str
    fields: dict[str, Value] = field(default_factory=dict)
    arguments: tuple[Value, ...] = ()

    @property
    def is_error(self) -> bool:
        return self.kind == "TashiException" or self.kind.startswith("exceptions.")


def dumps(value: Value) -> bytes:
    """Protocol 2, with `str` as Python 2's byte string in UTF-8."""
    return b"\x80\x02" + _dump(value) + b"."


def _dump(value: Value) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"J" + struct.pack("<i", value) if len(digits) <= 4 else b"\x8a" + bytes([len(digits)]) + digits
        case str():
            data = value.encode()
            return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data
        case list():
            return b"](" + b"".join(map(_dump, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_dump, value)) + b"t"
        case dict():
            return b"}(" + b"".join(_dump(part) for item in value.items() for part in item) + b"u"
        case Record():
            return f"c{MODULE}\n{value.kind}\n".encode() + b")\x81" + _dump(value.fields) + b"b"
    raise TypeError(f"{type(value).__name__} has no place in a call of Tashi's")


def loads(data: bytes) -> Value:
    """Raises BadPickle."""
    return _Reader(data).read()


class _Mark:
    """Where the items of a container begin, on the stack."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the pickle names."""

    module: str
    name: str

    @property
    def kind(self) -> str:
        """Of the objects that this makes; "" if none may be made."""
        if self.module == MODULE and self.name in TYPES:
            return self.name
        return f"exceptions.{self.name}" if self.module == "exceptions" and self.name.isidentifier() else ""


_MARK = _Mark()
_OBJECT = _Name("__builtin__", "object")
_RECONSTRUCTOR = _Name("copy_reg", "_reconstructor")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Value] = []
        self._memo: dict[int, Value] = {}
        self._depths: dict[int, int] = {}
        """Of each container, by its id()."""
        self._placed: set[int] = set()
        """Containers that are in another one, and so change no more."""
        self._kept: list[Value] = []
        """All containers, so that no id() is used twice."""

    def read(self) -> Value:
        try:
            while (code := self._take(1)) != b".":
                step = _STEPS.get(code)
                if step is None:
                    raise BadPickle(f"opcode {code!r} is not admitted")
                step(self)
            result = self._pop()
            if self._stack or self._at != len(self._data):
                raise BadPickle("something follows its end")
        except BadPickle as e:
            raise BadPickle(f"byte {self._at}: {e}") from None
        except (ValueError, struct.error) as e:
            raise BadPickle(f"byte {self._at}: {type(e).__name__}") from None
        return result

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if count < 0 or len(taken) < count:
            raise BadPickle("it is cut off")
        self._at += count
        return taken

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise BadPickle("it is cut off")
        return self._take(end + 1 - self._at)[:-1]

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _digits(self) -> int:
        line = self._line()
        if len(line) > MAX_DIGITS:
            raise BadPickle("a number has too many digits")
        return int(line)

    def _push(self, value: Value) -> None:
        self._stack.append(value)

    def _pop(self) -> Value:
        if not self._stack or self._stack[-1] is _MARK:
            raise BadPickle("a value is missing")
        return self._stack.pop()

    def _top(self, kind: type) -> Value:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise BadPickle(f"there is no {kind.__name__} to add to")
        return self._stack[-1]

    def _since_mark(self) -> list[Value]:
        items = []
        while self._stack and self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        if not self._stack:
            raise BadPickle("a mark is missing")
        self._stack.pop()
        return items[::-1]

    def _new(self, container: Value, *items: Value) -> None:
        self._kept.append(container)
        self._depths[id(container)] = 1
        self._placed.discard(id(container))  # there is only one empty tuple
        self._place(container, *items)
        self._push(container)

    def _place(self, container: Value, *items: Value) -> None:
        """Notes that the items are in the container."""
        if id(container) in self._placed:
            raise BadPickle("a container changes after it was used")
        for item in items:
            depth = self._depths.get(id(item), 0) + 1
            if depth > MAX_DEPTH or item is container:
                raise BadPickle("it is nested too deeply")
            if depth > 1:
                self._placed.add(id(item))
            self._depths[id(container)] = max(self._depths[id(container)], depth)

    def _add_to_list(self, items: list[Value]) -> None:
        target = self._top(list)
        self._place(target, *items)
        target.extend(items)

    def _add_to_dict(self, items: list[Value]) -> None:
        target = self._top(dict)
        if len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise BadPickle("a key is no text")
        self._place(target, *items)
        target.update(zip(items[::2], items[1::2], strict=True))

    def _two(self) -> list[Value]:
        value = self._pop()
        return [self._pop(), value]

    def _build(self) -> None:
        state = self._pop()
        record = self._top(Record)
        if not isinstance(state, dict):
            raise BadPickle("an object has no fields")
        self._place(record, state)
        record.fields = state

    def _global(self) -> None:
        name = _Name(self._line().decode("ascii"), self._line().decode("ascii"))
        if not name.kind and name not in (_OBJECT, _RECONSTRUCTOR):
            raise BadPickle(f"{name.module[:40]}.{name.name[:40]} is not admitted")
        self._push(name)

    def _call(self) -> None:
        target, arguments = self._two()
        if target == _RECONSTRUCTOR and isinstance(arguments, tuple) and len(arguments) == 3:
            target, base, state = arguments
            arguments = () if base == _OBJECT and state is None else None
        self._object(target, arguments)

    def _object(self, target: Value, arguments: Value) -> None:
        if not isinstance(target, _Name) or not target.kind or not isinstance(arguments, tuple):
            raise BadPickle("something is called that is no type of Tashi's")
        self._new(Record(target.kind, {}, arguments), *arguments)

    def _remember(self, index: int) -> None:
        if not self._stack:
            raise BadPickle("a value is missing")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo or self._memo[index] is _MARK:
            raise BadPickle("it refers to nothing")
        self._push(self._memo[index])

    def _long(self) -> None:
        size = self._number("<B")
        if size > MAX_DIGITS // 2:
            raise BadPickle("a number has too many digits")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _int_line(self) -> None:
        if self._data[self._at : self._at + 3] in (b"00\n", b"01\n"):
            self._push(self._line() == b"01")
        else:
            self._push(self._digits())

    def _long_line(self) -> None:
        line = self._line().rstrip(b"L")
        if len(line) > MAX_DIGITS:
            raise BadPickle("a number has too many digits")
        self._push(int(line))

    def _string_line(self) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise BadPickle("a text has no quotes")
        self._text(codecs.escape_decode(line[1:-1])[0])

    def _text(self, data: bytes) -> None:
        """Python 2's byte strings are text in most cases; what is no UTF-8 is not ours."""
        self._push(data.decode("utf-8", "replace"))

    def _items(self, count: int) -> tuple[Value, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    def _tuple(self, items: tuple[Value, ...]) -> None:
        self._new(items, *items)

    def _list(self) -> None:
        items = self._since_mark()
        self._new([])
        self._add_to_list(items)

    def _dict(self) -> None:
        items = self._since_mark()
        self._new({})
        self._add_to_dict(items)

    def _protocol(self) -> None:
        if self._number("<B") > 2:
            raise BadPickle("its protocol is none of Python 2's")


_STEPS: dict[bytes, Callable[[_Reader], None]] = {
    b"(": lambda r: r._push(_MARK),
    b"N": lambda r: r._push(None),
    b"\x88": lambda r: r._push(True),
    b"\x89": lambda r: r._push(False),
    b"I": _Reader._int_line,
    b"L": _Reader._long_line,
    b"J": lambda r: r._push(r._number("<i")),
    b"K": lambda r: r._push(r._number("<B")),
    b"M": lambda r: r._push(r._number("<H")),
    b"\x8a": _Reader._long,
    b"F": lambda r: r._push(float(r._line())),
    b"G": lambda r: r._push(struct.unpack(">d", r._take(8))[0]),
    b"S": _Reader._string_line,
    b"V": lambda r: r._push(r._line().decode("raw-unicode-escape")),
    b"U": lambda r: r._text(r._take(r._number("<B"))),
    b"T": lambda r: r._text(r._take(r._number("<i"))),
    b"X": lambda r: r._text(r._take(r._number("<I"))),
    b"]": lambda r: r._new([]),
    b"l": _Reader._list,
    b"a": lambda r: r._add_to_list([r._pop()]),
    b"e": lambda r: r._add_to_list(r._since_mark()),
    b"}": lambda r: r._new({}),
    b"d": _Reader._dict,
    b"s": lambda r: r._add_to_dict(r._two()),
    b"u": lambda r: r._add_to_dict(r._since_mark()),
    b")": lambda r: r._tuple(()),
    b"t": lambda r: r._tuple(tuple(r._since_mark())),
    b"\x85": lambda r: r._tuple(r._items(1)),
    b"\x86": lambda r: r._tuple(r._items(2)),
    b"\x87": lambda r: r._tuple(r._items(3)),
    b"c": _Reader._global,
    b"R": _Reader._call,
    b"\x81": lambda r: r._object(*r._two()),
    b"b": _Reader._build,
    b"p": lambda r: r._remember(r._digits()),
    b"q": lambda r: r._remember(r._number("<B")),
    b"r": lambda r: r._remember(r._number("<I")),
    b"g": lambda r: r._recall(r._digits()),
    b"h": lambda r: r._recall(r._number("<B")),
    b"j": lambda r: r._recall(r._number("<I")),
    b"\x80": _Reader._protocol,
}
