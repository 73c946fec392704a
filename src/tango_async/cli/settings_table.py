"""The settings in print: docs/settings.md from the docstrings of its tables, and `tango config show`."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
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
        group = type(getattr(config.Settings(), table)).__name__
        for key, default, doc in _attributes(classes[group]):
            name = f"{table}.{key}"
            if doc is None:
                raise LookupError(f"{name} has no docstring")
            meaning, mark, rest = doc.partition("`TANGO_")  # the variable's own column says it
            variable = special.get(name, f"TANGO_{table}_{key}".upper())
            note = rest.partition("`")[2].strip(" ,.") if mark else ""
            yield Setting(table, key, default, f"`{variable}`{', ' + note if note else ''}", " ".join(meaning.split()))


def _attributes(group: ast.ClassDef) -> Iterator[tuple[str, str, str | None]]:
    """Name, default and docstring: the string that stands alone after the attribute."""
    for node, after in zip(group.body, [*group.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            doc = None
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = inspect.cleandoc(str(after.value.value))
            yield node.target.id, _default(node.target.id, node.value), doc


def _default(key: str, node: ast.expr) -> str:
    """As the source has it, since a default may depend on the host; sums are worked out."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Path":
        return f"`{ast.literal_eval(node.args[0])}`"
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("field"):
        factory = node.keywords[0].value
        node = factory.body if isinstance(factory, ast.Lambda) else factory
    if ast.unparse(node) == "dict":
        return "empty"
    value: Any = None
    try:
        value = _value(node)
    except ValueError:
        return f"`{ast.unparse(node)}`"
    if value is None or value in ("", (), [], {}):
        return "unset" if value is None or value == "" else "empty"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool) or not isinstance(value, int):
        return f"`{value if isinstance(value, str) else json.dumps(value)}`"
    return f"{value} ({_binary(value)})" if key.endswith("_bytes") and value and _binary(value) else str(value)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Pow):
            return left**right
    return ast.literal_eval(node)


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
