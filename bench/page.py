"""The table of the last run, in docs/speed.md between its two marks."""

from __future__ import annotations

import re
from pathlib import Path

from figures import Figure, markdown

BETWEEN = re.compile(r"(<!-- the last run -->\n).*(<!-- its end -->)", re.DOTALL)


def put_table(page: Path, host: str, figures: list[Figure], skipped: list[str]) -> None:
    """Replaces what stands between the marks; raises RuntimeError if there are none."""
    notes = list(dict.fromkeys(f"- {figure.what}: {figure.note}" for figure in figures if figure.note))
    left_out = [f"- not measured, {why}" for why in skipped]
    text = "\n".join([f"On {host}.\n", markdown(figures), *notes, *left_out])
    written, found = BETWEEN.subn(lambda marks: f"{marks[1]}\n{text}\n\n{marks[2]}", page.read_text())
    if not found:
        raise RuntimeError(f"{page} has no marks to put the table between")
    page.write_text(written)
