"""`tango hosts` and `tango host`: the dispatchers, and orders to them while they run. Needs an admin's key."""

from __future__ import annotations

import json

import click

from ..client import TangoClient
from . import terminal
from .command import as_json_option, client_command

_host = click.argument("host", metavar="INSTALL|HOST")


@click.command()
@as_json_option
@client_command
async def hosts(client: TangoClient, as_json: bool) -> None:
    """List the dispatchers: where they are, what they have, whether they take jobs."""
    found = await client.hosts()
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = []
    for h in found:
        rows.append(
            (
                *(h[field] for field in ("install", "host", "vmms", "slots", "busy", "version")),
                ",".join(h.get("labels", ())),
                *(h[field] for field in ("state", "problem")),
            )
        )
        for e in h.get("engines", ()):
            state = "ready" if e["healthy"] else "ill"
            rows.append(("", e["name"], "", e["slots"], e["busy"], "", "", state, e["problem"]))
    head = ("INSTALL", "HOST", "VMMS", "SLOTS", "BUSY", "VERSION", "LABELS", "STATE", "PROBLEM")
    click.echo(terminal.table(head, rows))


@click.group()
def host() -> None:
    """Pause a dispatcher, resume it, change its slots; also after its next start.

    HOST is all dispatchers of a host.
    """


@host.command()
@_host
@client_command
async def pause(client: TangoClient, host: str) -> None:
    """Claim nothing more; what runs may end."""
    click.echo(terminal.harmless(await client.pause(host)))


@host.command()
@_host
@client_command
async def resume(client: TangoClient, host: str) -> None:
    """Claim jobs again."""
    click.echo(terminal.harmless(await client.resume(host)))


@host.command()
@click.argument("number", metavar="N|default")
@_host
@client_command
async def slots(client: TangoClient, number: str, host: str) -> None:
    """Run N jobs at a time, or as many as its settings say. No running job is ended."""
    click.echo(terminal.harmless(await client.set_slots(host, number)))
