"""What an operator does by hand: look at callbacks, send one again, erase a submitter. Needs an admin's key."""

from __future__ import annotations

import json
from typing import Any

import click

from ..client import TangoClient
from . import terminal
from .command import as_json_option, client_command


class _Callbacks(click.Group):
    """Without the name of a command it lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Callbacks)
def callbacks() -> None:
    """List callbacks, show the tries of one, send one again."""


@callbacks.command("list")
@click.option("--unsent", is_flag=True, help="Only those that were given up.")
@as_json_option
@client_command
async def list_callbacks(client: TangoClient, unsent: bool, as_json: bool) -> None:
    """Those to be delivered, then the latest given up, then the latest delivered."""
    found = await client.callbacks(unsent=unsent)
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [(c["id"], c["state"], c["due"] or "", c["tries"], c["last"] or "", c["url"]) for c in found]
    click.echo(terminal.table(("ID", "STATE", "DUE", "TRIES", "LAST TRY", "URL"), rows))


@callbacks.command()
@click.argument("job_id", metavar="ID", type=int)
@client_command
async def show(client: TangoClient, job_id: int) -> None:
    """Show how it stands with one job's callback, and each try."""
    found: dict[str, Any] = await client.callback(job_id)
    for name in ("id", "name", "state", "due", "url"):
        click.echo(f"{name:7}{terminal.harmless(str(found[name] if found[name] is not None else 'not due'))}")
    for line in found["log"] or ():
        click.echo(terminal.harmless(f"  {line.replace('|', '  ', 1)}"))


@callbacks.command()
@click.argument("job_id", metavar="ID", type=int)
@client_command
async def resend(client: TangoClient, job_id: int) -> None:
    """Send a callback again now, also one that was delivered or given up."""
    click.echo(terminal.harmless(await client.resend(job_id)))


@click.command()
@click.option("--submitter", required=True, metavar="EMAIL", help="Whose, as Autolab has it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@client_command
async def erase(client: TangoClient, submitter: str, yes: bool) -> int:
    """Erase a submitter's jobs, outputs, inputs and uploads. What runs is ended first.

    Exit status 1: some jobs have not ended yet; do it again.
    """
    if not yes:
        click.confirm(f"Erase everything of {submitter}?", abort=True)
    message, erased = await client.erase(submitter)
    click.echo(terminal.harmless(message))
    return 1 if erased["running"] else 0
