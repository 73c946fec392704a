"""The settings in print: docs/settings.md from the docstrings of its tables, and `tango config show`."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config
from ..config import backends, hosts, service

_HEAD = """\
# Settings

Made by `tango config table` from `src/tango_async/config/`; a test holds it to that.

Settings come from `tango.toml` (`--config FILE` or `TANGO_CONFIG`), and over it from the environment.
A setting that is unknown or wrong stops the service at its start, with its name. `tango config show`
prints what is in force. Not settings, but read from the environment as well: `TANGO_REDIS_SERVER` (the
program of the embedded queue server), and by the client `TANGO_URL` and `TANGO_KEY`.
"""

_OF_THE_HOST = {
    "max(1, os.cpu_count() or 1)": "the cores of the host",
    "HOST_MEMORY_BYTES // 8": "1/8 of the host's memory",
    "HOST_MEMORY_BYTES // 16": "1/16 of the host's memory",
}
"""Defaults that are not the same everywhere, by their source."""


@dataclass(frozen=True, slots=True)
class Setting:
    table: str
    key: str
    default: str
    variable: str
    meaning: str


def settings() -> Iterator[Setting]:
    """Every setting, in the order of Settings. Raises LookupError for one without a docstring."""
    modules = (backends, hosts, service)
    trees = [ast.parse(inspect.getsource(module)) for module in modules]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    special = {name: variable for variable, name in config.VARIABLES.items()}
    for table in config.Settings.__struct_fields__:
        defaults = getattr(config.Settings(), table)
        for key, source, doc in _attributes(classes[type(defaults).__name__]):
            name = f"{table}.{key}"
            if doc is None:
                raise LookupError(f"{name} has no docstring")
            meaning, mark, rest = doc.partition("`TANGO_")  # the variable's own column says it
            variable = special.get(name, f"TANGO_{table}_{key}".upper())
            note = rest.partition("`")[2].strip(" ,.") if mark else ""
            default = _default(key, source, getattr(defaults, key))
            yield Setting(table, key, default, f"`{variable}`{', ' + note if note else ''}", " ".join(meaning.split()))


def _attributes(group: ast.ClassDef) -> Iterator[tuple[str, str, str | None]]:
    """Name, source of the default, and docstring: the string that stands alone after the attribute."""
    for node, after in zip(group.body, [*group.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            doc = None
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = inspect.cleandoc(str(after.value.value))
            yield node.target.id, ast.unparse(node.value), doc


def _default(key: str, source: str, value: Any) -> str:
    """As it may stand in tango.toml, or in words. Raises LookupError if it depends on the host and has no words."""
    if "os." in source or "HOST_" in source:
        return _OF_THE_HOST[source]
    if value is None or value in ("", (), {}):
        return "unset" if value is None or value == "" else "empty"
    if isinstance(value, dict):
        return f"`{{ {', '.join(_pairs(value))} }}`"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"`{_toml(str(value) if isinstance(value, Path) else value)}`"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value} ({_binary(value)})" if key.endswith("_bytes") and value and _binary(value) else str(value)


def _binary(size: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size % 1024**power == 0:
            return f"{size // 1024**power} {unit}"
    return ""


def markdown() -> str:
    """The whole of docs/settings.md."""
    parts = [_HEAD]
    table = ""
    for one in settings():
        if one.table != table:
            table = one.table
            parts.append(f"\n## `[{table}]`\n\n| setting | default | variable | meaning |\n|---|---|---|---|\n")
        meaning = one.meaning.replace("|", "\\|")
        parts.append(f"| `{one.key}` | {one.default} | {one.variable} | {meaning} |\n")
    return "".join(parts)


def as_toml(shown: dict[str, Any]) -> str:
    """Settings as TOML. What is unset, or secret and set, stands in a comment."""
    lines: list[str] = []
    for table, values in shown.items():
        lines.append(f"[{table}]")
        nested = {key: value for key, value in values.items() if isinstance(value, dict)}
        listed = {key: value for key, value in values.items() if _is_tables(value)}
        for key, value in values.items():
            if value is None or value == "(set)":
                lines.append(f"# {key} is {'set' if value else 'unset'}")
            elif key not in nested and key not in listed:
                lines.append(f"{key} = {_toml(value)}")
        for key, entries in nested.items():
            lines += ["", f"[{table}.{key}]", *_pairs(entries)]
        for key, tables in listed.items():
            for entries in tables:
                lines += ["", f"[[{table}.{key}]]", *_pairs(entries)]
        lines.append("")
    return "\n".join(lines)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(one, dict) for one in value)


def _pairs(entries: dict[str, Any]) -> list[str]:
    return [f"{_toml(name)} = {_toml(value)}" for name, value in entries.items() if value is not None]


def _toml(value: Any) -> str:
    """JSON's strings, numbers, truth values and lists are TOML's, but for DEL."""
    return json.dumps(list(value) if isinstance(value, tuple) else value).replace("\x7f", "\\u007f")
