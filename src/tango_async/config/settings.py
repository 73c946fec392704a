"""All settings together: read, checked and shown.

The environment wins over the file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError
from .backends import Docker, Ec2, Sandbox, Tashi
from .groups import Group
from .hosts import SIZES, Dispatcher, Limits, Pools
from .service import S3, Callbacks, Http, Queue, Retention, Share, Store


class Settings(Group, frozen=True):
    """All settings; one attribute a table."""

    http: Http = Http()
    queue: Queue = Queue()
    store: Store = Store()
    s3: S3 = S3()
    retention: Retention = Retention()
    share: Share = Share()
    dispatcher: Dispatcher = Dispatcher()
    pools: Pools = Pools()
    limits: Limits = Limits()
    sandbox: Sandbox = Sandbox()
    docker: Docker = Docker()
    ec2: Ec2 = Ec2()
    tashi: Tashi = Tashi()
    callbacks: Callbacks = Callbacks()

    @property
    def state_dir(self) -> Path:
        return self.dispatcher.state_dir or self.store.data_dir / "dispatcher"


VARIABLES = {
    "TANGO_HOST": "http.host",
    "TANGO_PORT": "http.port",
    "TANGO_KEYS": "http.keys",
    "TANGO_KEYS_FILE": "http.keys_file",
    "TANGO_DATA_DIR": "store.data_dir",
    "TANGO_COURSELABS": "store.courselabs",
    "TANGO_STORE_URL": "store.url",
    "TANGO_S3_ENDPOINT": "s3.endpoint",
    "TANGO_REDIS_URL": "queue.url",
    "TANGO_VMMS": "dispatcher.vmms",
    "TANGO_SLOTS": "dispatcher.slots",
    "TANGO_CALLBACK_SECRET": "callbacks.secret",
    "DOCKER_HOST": "docker.host",
}
"""Environment variable → setting. TANGO_<TABLE>_<SETTING> sets any other one."""

SECRETS = {
    *("http.keys", "callbacks.secret", "queue.url", "queue.password", "queue.sentinel_password"),
    *("s3.access_key", "s3.secret_key", "s3.session_token", "ec2.access_key_id", "ec2.access_key"),
}
"""Not printed by `tango config show` nor logged."""

_OTHERS = {"TANGO_CONFIG", "TANGO_REDIS_SERVER", "TANGO_URL", "TANGO_KEY"}


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the file (if any), then the environment. Raises ConfigError naming the offending setting."""
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text())
        except OSError as e:
            raise ConfigError(f"{path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: {e}") from e
    settings = _convert(tables, str(path), strict=True)
    overrides: dict[str, dict[str, Any]] = {}
    for variable, name, value in _from_environment(environ):
        table, _, key = name.partition(".")
        parsed: Any = [k for k in (p.strip() for p in value.split(",")) if k] if _is_tuple(table, key) else value
        _convert({table: {key: parsed}}, variable, strict=False)
        overrides.setdefault(table, {})[key] = parsed
    merged = msgspec.to_builtins(settings, enc_hook=str)
    for table, values in overrides.items():
        merged[table].update(values)
    return _check(_convert(merged, "environment", strict=False))


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    found = []
    for variable, value in environ.items():
        if variable in VARIABLES:
            found.append((variable, VARIABLES[variable], value))
        elif variable.startswith("TANGO_") and variable not in _OTHERS:
            table, _, key = variable.removeprefix("TANGO_").lower().partition("_")
            group = getattr(Settings(), table, None)
            if not isinstance(group, Group) or key not in group.__struct_fields__:
                raise ConfigError(f"{variable}: there is no such setting")
            found.append((variable, f"{table}.{key}", value))
    return [(variable, name, value) for variable, name, value in found if value != ""]


def _is_tuple(table: str, key: str) -> bool:
    return isinstance(getattr(getattr(Settings(), table), key), tuple)


def _convert(tables: Mapping[str, Any], source: str, *, strict: bool) -> Settings:
    def hook(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str):
            return Path(value).expanduser()
        raise NotImplementedError

    try:
        return msgspec.convert(tables, Settings, strict=strict, dec_hook=hook)
    except msgspec.ValidationError as e:
        text, _, where = str(e).partition(" - at `$.")
        key = where.rstrip("`")
        raise ConfigError(f"{source}: {key + ': ' if key else ''}{text}") from e


def _check(s: Settings) -> Settings:
    if problems := [problem for key in s.http.keys if (problem := key_problem(key))]:
        raise ConfigError(f"http.keys: {problems[0]}")
    aliases = [(a, b) for a in s.http.keys for b in s.http.keys if a != b and b.startswith(a + "-")]
    if aliases:
        raise ConfigError(
            f"http.keys: keys number {s.http.keys.index(aliases[0][0]) + 1} and "
            f"{s.http.keys.index(aliases[0][1]) + 1} alias: one is the other plus '-…', "
            "so that two courselabs could share a directory"
        )
    for name in SIZES:
        if getattr(s.limits, f"max_{name}") < getattr(s.limits, name):
            raise ConfigError(f"limits.max_{name}: less than limits.{name}")
        for table in s.limits.image:
            own, most = getattr(table, name), getattr(table, f"max_{name}") or getattr(s.limits, f"max_{name}")
            if own is not None and own > most:
                raise ConfigError(f"limits.image: {table.name}: {name} is more than max_{name}, which is {most}")
    for pool in s.pools.image:
        if 0 < (s.pools.max if pool.max is None else pool.max) < pool.min:
            raise ConfigError(f"pools.image: {pool.pattern}: max is less than min")
    _check_engines(s.docker)
    if s.dispatcher.adopt_grace_s < s.dispatcher.lease_s:
        raise ConfigError("dispatcher.adopt_grace_s: less than dispatcher.lease_s")
    _check_s3(s.store, s.s3)
    return s


def _check_s3(store: Store, s3: S3) -> None:
    if store.url and not re.fullmatch(
        r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[\w./-]{0,200})?", store.url, re.ASCII
    ):
        raise ConfigError("store.url (TANGO_STORE_URL): expected s3://bucket or s3://bucket/prefix")
    if s3.endpoint and not re.fullmatch(r"https?://[^/\s]+/?", s3.endpoint):
        raise ConfigError("s3.endpoint (TANGO_S3_ENDPOINT): expected https://host or http://host:port")
    if bool(s3.access_key) != bool(s3.secret_key):
        raise ConfigError("s3.access_key and s3.secret_key: one is set and the other is not")


def _check_engines(docker: Docker) -> None:
    for number, host in enumerate(docker.hosts):
        where = f"docker.hosts: {host.name}"
        if host.name in {other.name for other in docker.hosts[:number]}:
            raise ConfigError(f"{where}: two hosts have this name")
        if host.url in {other.url for other in docker.hosts[:number]}:
            raise ConfigError(f"{where}: another host has the same url")
        over_ssh = host.url.startswith("ssh://")
        tls = {"ca": host.ca, "cert": host.cert} | ({} if over_ssh else {"key": host.key})
        if over_ssh or host.url.startswith("unix://"):
            if named := [name for name, file in tls.items() if file is not None]:
                raise ConfigError(f"{where}: {named[0]} is for tcp:// and https:// only")
        elif len({file is None for file in tls.values()}) > 1 or (host.url.startswith("https") and host.ca is None):
            raise ConfigError(f"{where}: TLS needs ca, cert and key together")
        if host.known_hosts is not None and not over_ssh:
            raise ConfigError(f"{where}: known_hosts is for ssh:// only")
        for name in ("ca", "cert", "key", "known_hosts"):
            if (file := getattr(host, name)) is not None and not file.is_absolute():
                raise ConfigError(f"{where}: {name}: {file} is no absolute path")


def key_problem(key: str) -> str | None:
    """Why a word cannot be a key: it begins the names of directories, and is a part of every path."""
    if not key or "/" in key or key.startswith(".") or any(c.isspace() or not c.isprintable() for c in key):
        return "a key must not begin with a dot nor hold '/', white space or control characters"
    return None


def show(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, secrets replaced."""
    shown: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    for name in SECRETS:
        table, _, key = name.partition(".")
        if shown[table][key]:
            shown[table][key] = "(set)"
    return shown
