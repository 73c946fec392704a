"""rpyc 3's messages: a frame around one value in brine, rpyc's form of immutable values.

    frame   length of the data (4 bytes) · 1 if it is compressed, else 0 · data · newline
    brine   a tag, and what it says: a small integer by itself, others with their length

Python 2's `str` is bytes here. Everything is bounded, since the other side may send anything.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import Any

MAX_BYTES = 1024**2
"""Largest message, also when it is no more compressed: some three thousand instances."""
MAX_DEPTH = 16
MAX_DIGITS = 32
HEADER = struct.Struct("!LB")
_LENGTH = struct.Struct("!L")
_SMALL = range(-0x30, 0xA0)
_SINGLE = {0x00: None, 0x01: b"", 0x02: (), 0x03: True, 0x04: False}

Value = Any
"""None, bool, int, float, bytes, str, or a tuple of them."""


class BadMessage(ValueError):
    """The bytes are no message of rpyc's; says why."""


def frame(value: Value) -> bytes:
    """The value as one message, which is not compressed."""
    data = dumps(value)
    return HEADER.pack(len(data), 0) + data + b"\n"


async def read_frame(reader: asyncio.StreamReader) -> Value:
    """The next message's value. Raises BadMessage, IncompleteReadError, OSError."""
    length, compressed = HEADER.unpack(await reader.readexactly(HEADER.size))
    if compressed > 1 or length > MAX_BYTES:
        raise BadMessage("that is no message of rpyc's" if compressed > 1 else f"a message of {length} bytes")
    data = await reader.readexactly(length)
    if await reader.readexactly(1) != b"\n":
        raise BadMessage("a message does not end where it should")
    return loads(_inflated(data) if compressed else data)


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        whole = inflater.decompress(data, MAX_BYTES + 1)
    except zlib.error as e:
        raise BadMessage(f"a message cannot be decompressed: {e}") from e
    if len(whole) > MAX_BYTES or not inflater.eof:
        raise BadMessage("a compressed message is too large, or cut off")
    return whole


def dumps(value: Value) -> bytes:
    match value:
        case None:
            return b"\x00"
        case bool():
            return b"\x03" if value else b"\x04"
        case int():
            digits = str(value).encode()
            return bytes([value + 0x50]) if value in _SMALL else b"\x16" + bytes([len(digits)]) + digits
        case bytes():
            return _sized(value, len(value), b"\x01", 0x09, b"\x0e", b"\x0f")
        case tuple():
            return _sized(b"".join(map(dumps, value)), len(value), b"\x02", 0x0F, b"\x14", b"\x15")
    raise TypeError(f"{type(value).__name__} has no place in a message of ours")


def _sized(data: bytes, count: int, empty: bytes, few: int, short: bytes, long: bytes) -> bytes:
    """`data` behind the tag for `count` bytes or items."""
    if count == 0:
        return empty
    if count <= 4:
        return bytes([few + count]) + data
    return (short + bytes([count]) if count < 256 else long + _LENGTH.pack(count)) + data


def loads(data: bytes) -> Value:
    """Raises BadMessage."""
    reader = _Reader(data)
    try:
        value = reader.value()
    except BadMessage:
        raise
    except ValueError as e:
        raise BadMessage(f"a message holds what it should not: {type(e).__name__}") from e
    if not reader.at_end:
        raise BadMessage("something follows the end of a message")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise BadMessage("a message is cut off")
        self._at += count
        return taken

    def _length(self, *, short: bool) -> int:
        return self._take(1)[0] if short else int(_LENGTH.unpack(self._take(_LENGTH.size))[0])

    def value(self, depth: int = 0) -> Value:
        if depth > MAX_DEPTH:
            raise BadMessage("a message is nested too deeply")
        tag = self._take(1)[0]
        if tag in _SINGLE:
            return _SINGLE[tag]
        if tag - 0x50 in _SMALL:
            return tag - 0x50
        if 0x0A <= tag <= 0x0D:
            return self._take(tag - 0x09)
        if tag in (0x0E, 0x0F):
            return self._take(self._length(short=tag == 0x0E))
        if 0x10 <= tag <= 0x13:
            return self._tuple(tag - 0x0F, depth)
        if tag in (0x14, 0x15):
            return self._tuple(self._length(short=tag == 0x14), depth)
        if tag in (0x16, 0x17):
            return self._integer(self._length(short=tag == 0x16))
        if tag == 0x18:
            return struct.unpack("!d", self._take(8))[0]
        if tag not in (0x08, 0x09):
            raise BadMessage(f"a message holds the unknown tag {tag:#x}")
        inner = self.value(depth + 1)  # of a text or a long
        if tag == 0x08 and isinstance(inner, bytes):
            return inner.decode()
        if tag == 0x09 and isinstance(inner, int):
            return inner
        raise BadMessage("a message holds a text or number that is none")

    def _tuple(self, count: int, depth: int) -> tuple[Value, ...]:
        if count > len(self._data) - self._at:
            raise BadMessage("a message is cut off")
        return tuple(self.value(depth + 1) for _ in range(count))

    def _integer(self, digits: int) -> int:
        if digits > MAX_DIGITS:
            raise BadMessage("a number has too many digits")
        return int(self._take(digits))
