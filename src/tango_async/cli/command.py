"""What the client commands have in common: a connected client, and --json."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import click

from ..client import TangoClient
from ..errors import TangoError
from . import run as runs

DEFAULT_URL = "http://127.0.0.1:3000"

P = ParamSpec("P")
T = TypeVar("T")


def client_command(
    body: Callable[Concatenate[TangoClient, P], Awaitable[T]],
) -> Callable[P, T]:
    """A command whose first argument is a connected client, from --url and --key."""

    @click.option("--url", envvar="TANGO_URL", default=DEFAULT_URL, show_default=True, help="The server. TANGO_URL")
    @click.option("--key", envvar="TANGO_KEY", help="One of its keys. TANGO_KEY")
    @wraps(body)
    def command(url: str, key: str | None, *args: P.args, **kwargs: P.kwargs) -> T:
        if not key:
            raise click.UsageError("no key: give --key, or set TANGO_KEY to one of the server's TANGO_KEYS")
        connected: str = key

        async def work() -> T:
            async with TangoClient(url, connected) as client:
                return await body(client, *args, **kwargs)

        try:
            return asyncio.run(work())
        except* TangoError as group:
            error = runs.first_error(group)
        raise error

    return command  # type: ignore[return-value]


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
