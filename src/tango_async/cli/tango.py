"""The `tango` command: a plain client of the REST API, the settings, and `tango up`.

Exit status 0: it went well; 1: the job failed; 2: wrong usage, or the server refused or cannot be
reached; 130: interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import msgspec

from .. import __version__, config
from ..client import Job, TangoClient
from ..errors import ClientError, TangoError
from . import admin, hosts, images, settings_table, terminal
from . import run as runs
from .command import as_json_option, client_command

DEFAULT_IMAGE = "autograding_image"


class _Commands(click.Group):
    """Imports the services only for `tango up`: a client needs none of their dependencies."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "up"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "up":
            from .services import up

            return up
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def tango() -> None:
    """Grade submissions on a Tango server, and run one."""


tango.add_command(admin.callbacks)
tango.add_command(admin.erase)
tango.add_command(hosts.hosts)
tango.add_command(hosts.host)
tango.add_command(images.image)


def main() -> None:
    """The console script."""
    try:
        code = tango.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except TangoError as e:
        terminal.write(f"tango: {e}\n", sys.stderr)
        sys.exit(2)


@tango.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--with", "extra", type=click.Path(path_type=Path), multiple=True, help="A further file, may be repeated."
)
@click.option("--image", default=DEFAULT_IMAGE, show_default=True, help="The image to run in.")
@click.option("-j", "copies", type=click.IntRange(1, 10_000), default=1, help="Run so many copies.")
@click.option("--timeout", "timeout_s", type=click.IntRange(min=1), help="Seconds; default: the server's.")
@click.option("--courselab", help="Courselab to upload to; default: the directory's name.")
@click.option("--priority", type=int, help="Among the jobs of its course, -100 to 100; more is earlier.")
@click.option("--cores", type=float, help="Processor cores; default: the server's.")
@click.option("--memory", "memory_mb", type=int, metavar="MB", help="Memory; default: the server's.")
@click.option("--quiet-cores", is_flag=True, help="For timing: on cores that nothing else uses meanwhile.")
@click.option("--requires", multiple=True, metavar="LABEL", help="On a host with this label, such as gpu; repeatable.")
@click.option("--no-network", is_flag=True, help="Give the job no network.")
@click.option("--callback", "callback_url", help="URL that gets the feedback, too.")
@click.option("-q", "--quiet", is_flag=True, help="No live output.")
@as_json_option
@client_command
async def run(
    client: TangoClient,
    directory: Path,
    extra: tuple[Path, ...],
    image: str,
    copies: int,
    timeout_s: int | None,
    courselab: str | None,
    priority: int | None,
    cores: float | None,
    memory_mb: int | None,
    quiet_cores: bool,
    requires: tuple[str, ...],
    no_network: bool,
    callback_url: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Grade the files of DIRECTORY and those given by --with.

    Live output goes to standard error, the feedback to standard output.
    """
    order = runs.Order(
        files=runs.collect(directory, extra),
        lab=courselab or runs.lab_name(directory),
        image=image,
        copies=copies,
        timeout_s=timeout_s,
        network=not no_network,
        priority=priority,
        callback_url=callback_url,
        cores=cores,
        memory_mb=memory_mb,
        quiet=quiet_cores,
        requires=requires,
        live_to_end=not sys.stdout.isatty(),
    )

    def show(text: str) -> None:
        if not quiet:
            terminal.write(text, sys.stderr)

    results = await runs.run(client, order, show)
    if as_json:
        listed = [one.as_dict() for one in results]
        click.echo(json.dumps(listed[0] if copies == 1 else {"jobs": listed}))
    elif copies == 1:
        terminal.write_bytes(results[0].feedback)
        show(f"{runs.line(results[0])}\n")
    else:
        click.echo(runs.summary(results))
    return 0 if all(one.passed for one in results) else 1


@tango.command()
@click.option("--dead", is_flag=True, help="Those that ended.")
@as_json_option
@client_command
async def jobs(client: TangoClient, dead: bool, as_json: bool) -> None:
    """List the jobs that wait or run."""
    found = await client.jobs(dead=dead)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    rows = [(one.id, _state(one, dead), one.name, one.vm.get("image", ""), _last(one)) for one in found]
    click.echo(terminal.table(("ID", "STATE", "NAME", "IMAGE", "LAST EVENT"), rows))


@tango.command()
@click.argument("job_id", metavar="ID", type=int)
@as_json_option
@client_command
async def job(client: TangoClient, job_id: int, as_json: bool) -> None:
    """Show one job, its events, and the output so far if it runs."""
    found, dead = await _find(client, job_id)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    facts: list[tuple[str, object]] = [
        ("id", found.id),
        ("name", found.name),
        ("state", _state(found, dead)),
        ("image", found.vm.get("image", "")),
        ("machine", _machine(found)),
        ("timeout", found.timeout or "the server's default"),
        ("retries", found.retries),
        ("output", found.output_file or ""),
        ("callback", found.callback_url or "none"),
        *_foretold(found),
    ]
    click.echo("\n".join(f"{name:10}{terminal.harmless(str(value))}" for name, value in facts))
    click.echo(terminal.harmless("\n".join(f"  {event.replace('|', '  ', 1)}" for event in found.trace)))
    if not dead and (output := await client.partial_output(job_id)):
        terminal.write(output, sys.stdout)


@tango.command()
@click.argument("job_id", metavar="ID", type=int)
@client_command
async def cancel(client: TangoClient, job_id: int) -> None:
    """End a job that waits or runs."""
    said = await client.cancel_job(job_id)
    if said is None:
        found, dead = await _find(client, job_id)
        if dead:
            raise ClientError(f"job {job_id} has ended already")
        said = await client.cancel(*client.lab_and_output(found))
    click.echo(terminal.harmless(said))


@tango.command()
@click.argument("image", default="")
@as_json_option
@client_command
async def pools(client: TangoClient, image: str, as_json: bool) -> None:
    """List the pools of machines."""
    found = await client.pools(image)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    rows = [(name, len(pool.total), len(pool.free), pool.problem) for name, pool in sorted(found.items())]
    click.echo(terminal.table(("IMAGE", "MACHINES", "FREE", "PROBLEM"), rows))


@tango.command()
@as_json_option
@client_command
async def info(client: TangoClient, as_json: bool) -> None:
    """Show the server's counters."""
    found = msgspec.to_builtins(await client.info())
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo("\n".join(f"{name:18}{value}" for name, value in found.items() if value != {}))


@tango.group("config")
def config_group() -> None:
    """Look at the settings."""


@config_group.command()
@click.option("--config", "path", type=click.Path(path_type=Path), envvar="TANGO_CONFIG", help="tango.toml")
def show(path: Path | None) -> None:
    """Print every setting as tango.toml would hold it, secrets left out."""
    click.echo(settings_table.as_toml(config.show(config.load(path))), nl=False)


@config_group.command()
def table() -> None:
    """Print the table of every setting, which is docs/settings.md."""
    click.echo(settings_table.markdown(), nl=False)


async def _find(client: TangoClient, job_id: int) -> tuple[Job, bool]:
    for dead in (False, True):
        for found in await client.jobs(dead=dead):
            if found.id == job_id:
                return found, dead
    raise ClientError(f"the server lists no job {job_id}")


def _foretold(found: Job) -> list[tuple[str, object]]:
    if found.position is None:
        return []
    starts = "when a dispatcher offers what it needs" if found.eta_s is None else f"in about {found.eta_s:.0f} s"
    error = "" if found.eta_error_s is None else f" (such forecasts were wrong by {found.eta_error_s:.0f} s)"
    return [("position", f"{found.position} jobs start before it"), ("starts", starts + error)]


def _machine(found: Job) -> str:
    """As far as it is told; Tango leaves most of it null."""
    units = {"cores": "{} cores", "memory": "{} MB", "vmms": "{}"}
    told = [form.format(found.vm[name]) for name, form in units.items() if found.vm.get(name)]
    return ", ".join(told) or "not told"


def _state(found: Job, dead: bool) -> str:
    """As Autolab reads it from the last event."""
    if dead:
        return "failed" if "Error" in _last(found) else "ended"
    return "waiting" if "Added job" in _last(found) else "running"


def _last(found: Job) -> str:
    return found.trace[-1].partition("|")[2] if found.trace else ""


if __name__ == "__main__":
    main()
