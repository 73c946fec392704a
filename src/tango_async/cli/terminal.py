"""Printing what strangers wrote: harmless on a terminal, byte for byte anywhere else."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TextIO

import click

_HIDING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def harmless(text: str) -> str:
    """The text with control characters and those that reorder or hide others made visible.

    A job's output could otherwise clear the screen, forge lines, or type into some terminals.
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDING else _visible(c) for c in text)


def _visible(c: str) -> str:
    code = ord(c)
    if code < 0x20 or code == 0x7F:
        return "^" + chr(code ^ 0x40)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def write_bytes(content: bytes) -> None:
    """To standard output."""
    if sys.stdout.isatty():
        click.echo(harmless(content.decode(errors="backslashreplace")), nl=False)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def write(text: str, stream: TextIO) -> None:
    """To a stream that may be a terminal; characters that it cannot show are escaped."""
    if stream.isatty():
        text = harmless(text)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns side by side; cells are made harmless and lose their line breaks."""
    lines = [[harmless(str(cell)).replace("\n", " ") for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
