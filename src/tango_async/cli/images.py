"""`tango image`: which images the hosts have, and to load, pull and push them on all. Needs an admin's key."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click

from ..client import TangoClient
from ..errors import ClientError
from . import terminal
from .command import as_json_option, client_command

LOOK_S = 0.5

_wait = click.option(
    "--wait", "wait_s", type=float, default=300.0, show_default=True, help="Seconds to wait for every host; 0: none."
)


@click.group()
def image() -> None:
    """List images; load, pull and push them on every host."""


@image.command("list")
@as_json_option
@client_command
async def list_images(client: TangoClient, as_json: bool) -> None:
    """Images and the hosts that have them, then what has become of each order on each host."""
    found = await client.images()
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [(one["name"], place, number) for one in found["images"] for place, number in sorted(one["hosts"].items())]
    click.echo(terminal.table(("IMAGE", "HOST", "ID"), rows))
    if found["orders"]:
        click.echo()
        click.echo(_states(found["orders"]))


@image.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="What jobs will call it.")
@_wait
@client_command
async def load(client: TangoClient, archive: Path, name: str, wait_s: float) -> int:
    """Load ARCHIVE, as `docker save` wrote it."""
    click.echo(terminal.harmless(await client.build(name, archive)))
    return await _await(client, "load", name, wait_s)


@image.command()
@click.argument("name")
@_wait
@client_command
async def pull(client: TangoClient, name: str, wait_s: float) -> int:
    """Have every host pull NAME from its registry."""
    click.echo(terminal.harmless(await client.move_image("pull", name)))
    return await _await(client, "pull", name, wait_s)


@image.command()
@click.argument("name")
@_wait
@client_command
async def push(client: TangoClient, name: str, wait_s: float) -> int:
    """Have a host that has it push NAME to its registry."""
    click.echo(terminal.harmless(await client.move_image("push", name)))
    return await _await(client, "push", name, wait_s)


async def _await(client: TangoClient, what: str, name: str, wait_s: float) -> int:
    """Shows what has become of the order, once every host has said so. 1 if it failed anywhere."""
    end = time.monotonic() + wait_s
    while True:
        orders = (await client.images())["orders"]
        mine = [one for one in orders if one["what"] == what and one["image"] == name.removesuffix(":latest")]
        states = [state for one in mine for state in one["hosts"].values()]
        waiting = [state for state in states if not (state["done"] or state["problem"])]
        if states and not waiting:
            click.echo(_states(mine))
            return int(not all(state["done"] for state in states))
        if time.monotonic() >= end:
            if wait_s:
                raise ClientError(f"{len(waiting)} hosts have not said anything yet; see tango image list")
            return 0
        await asyncio.sleep(LOOK_S)


def _states(orders: list[dict[str, Any]]) -> str:
    rows = [
        (one["image"], one["what"], place, "done" if state["done"] else state["problem"] or "to be done")
        for one in orders
        for place, state in sorted(one["hosts"].items())
    ]
    return terminal.table(("IMAGE", "ORDER", "HOST", "STATE"), rows)
