"""The command line: arguments in, results out, exit codes. What the commands do stands in commands/.

Imports of what a command needs wait until it runs: `backupd --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from backupd import __version__, console, signals
from backupd.console import Style
from backupd.errors import BackupdError, ConfigError


class Globals:
    """What the options before the command say."""

    def __init__(self, config: str | None = None, style: Style | None = None) -> None:
        self.config = config
        self.style = style or Style()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--config", metavar="FILE", help="The configuration file.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), help="Log lines on stderr; default: text, of a service json."
)
@click.option("--verbose", is_flag=True, help="Show tracebacks.")
@click.option("--quiet", is_flag=True, help="Nothing but results, warnings and errors.")
@click.version_option(__version__, prog_name="backupd", message="%(prog)s %(version)s")
@click.pass_context
def app(context: click.Context, config: str | None, log_format: str | None, verbose: bool, quiet: bool) -> None:
    """PostgreSQL backups that prove they restore.

    The configuration is --config, else $BACKUPD_CONFIG, else ./backupd.toml, else /etc/backupd/backupd.toml.
    """
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other")
    if log_format is None and context.invoked_subcommand == "run" and not console.colours(sys.stderr):
        log_format = "json"  # nobody watches: the lines are for programs
    context.obj.config, context.obj.style = config, Style(log_format or "text", verbose, quiet)


databases_argument = click.argument("databases", metavar="[DATABASE]...", nargs=-1)
database_argument = click.argument("database", metavar="DATABASE")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
at_option = click.option(
    "--at", required=True, metavar="TIME", help="ISO 8601, 'latest', an age (90m, 2h, 3d), or a backup's ID. Required."
)
jobs_option = click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Parallel streams.")


@app.command()
@click.option("--repository", metavar="URL", help="s3://BUCKET/PREFIX or file:///PATH")
@click.option("--database", "databases", metavar="NAME=DSN", multiple=True, help="A database to back up; repeatable.")
@click.pass_obj
def init(given: Globals, repository: str | None, databases: Sequence[str]) -> None:
    """Write a commented configuration and fresh keys beside it. Never overwrites."""
    from backupd.commands import setup

    setup.init(given.style, given.config, repository, databases)


@app.command()
@databases_argument
@json_option
@click.pass_obj
def check(given: Globals, databases: Sequence[str], as_json: bool) -> int:
    """Check configuration, tools, connections, privileges, keys and, for real, the storage."""
    from backupd.commands import setup

    return setup.check(given.config, databases, as_json)


@app.command()
@databases_argument
@jobs_option
@json_option
@click.pass_obj
def backup(given: Globals, databases: Sequence[str], jobs: int | None, as_json: bool) -> int:
    """Back up now: the databases named, or all."""
    from backupd.commands import backup as command

    return command.backup(given.style, given.config, databases, jobs, as_json)


@app.command("list")
@click.argument("database", metavar="[DATABASE]", required=False)
@json_option
@click.pass_obj
def list_(given: Globals, database: str | None, as_json: bool) -> int:
    """List committed backups, newest first."""
    from backupd.commands import listing

    return listing.list_backups(given.style, given.config, database, as_json)


@app.command()
@database_argument
@click.argument("which", metavar="[ID|latest]", default="latest")
@json_option
@click.pass_obj
def show(given: Globals, database: str, which: str, as_json: bool) -> None:
    """Show one backup: streams, tables, rows, versions, proofs."""
    from backupd.commands import listing

    listing.show(given.config, database, which, as_json)


@app.command()
@database_argument
@at_option
@click.option("--into", metavar="NAME", help="Name of the database to create.")
@click.option("--target", metavar="DSN", help="Another server, or a database there: empty, or to be created.")
@click.option("--replace", is_flag=True, help="When all is restored, swap names with the original, which is kept.")
@click.option("--table", "tables", metavar="PATTERN", multiple=True, help="Only these tables, and theirs; repeatable.")
@click.option("--schema", "schemas", metavar="PATTERN", multiple=True, help="Only these schemas; repeatable.")
@click.option("--with-references", is_flag=True, help="With --table: also the tables that foreign keys refer to.")
@click.option("--data-only", is_flag=True, help="Only rows, into tables that exist and are empty; all or nothing.")
@jobs_option
@click.option("--max-gap", metavar="DURATION", help="Refuse a backup that is older than TIME by more than this.")
@click.option("--no-owner", is_flag=True, help="Leave owners and grants out: all belongs to the restoring user.")
@click.option("--create-roles", is_flag=True, help="Create the roles that the target lacks; others are not touched.")
@click.option("--role-map", metavar="OLD=NEW", multiple=True, help="Give to NEW what was OLD's; repeatable.")
@click.option("--exclude-extension", metavar="NAME", multiple=True, help="Leave an extension out; repeatable.")
@click.option("--skip-privileged", is_flag=True, help="Leave out what only a superuser can restore.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished restore; keep what is loaded if this one fails.")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def restore(given: Globals, /, database: str, **options: object) -> None:
    """Restore the newest backup at or before TIME, never a later one.

    It goes into a new database beside the original, unless --into or --target says otherwise. Nothing that exists is
    overwritten; --replace swaps names at the end, and keeps the original under another one.
    """
    from backupd.commands import restore as command

    command.restore(given.style, given.config, database, command.RestoreOptions(**options))  # type: ignore[arg-type]


@app.command()
@database_argument
@click.argument("directory", metavar="DIRECTORY")
@at_option
@click.option("--plain", is_flag=True, help="One SQL file for psql instead of archives for pg_restore.")
@jobs_option
@json_option
@click.pass_obj
def export(given: Globals, /, database: str, **options: object) -> None:
    """Write the newest backup at or before TIME to a new folder: decrypted files for pg_restore, and RESTORE.md with
    the commands that restore them.
    """
    from backupd.commands import export as command

    command.export(given.style, given.config, database, command.ExportOptions(**options))  # type: ignore[arg-type]


@app.command()
@database_argument
@click.option(
    "--at", default="latest", metavar="TIME", help="ISO 8601, 'latest' (the default), an age (90m, 2h, 3d), or an ID."
)
@click.option(
    "--fingerprint", type=click.Choice(["off", "rows", "content"]), help="What is compared; default: the configured."
)
@click.option(
    "--server-major", type=click.IntRange(13), metavar="N", help="Rehearse an upgrade: restore into PostgreSQL N."
)
@click.option("--accept", is_flag=True, help="What vanished or shrank since the last proven backup was meant to.")
@jobs_option
@json_option
@click.pass_obj
def verify(given: Globals, /, database: str, **options: Any) -> int:
    """Restore a backup into scratch, compare it with its source, and record the signed proof."""
    from backupd.commands import verify as command

    return command.verify(given.style, given.config, database, command.VerifyOptions(**options))


@app.command()
@database_argument
@click.option("--since", metavar="TIME", help="ISO 8601 or an age (90d). Default: everything.")
@json_option
@click.pass_obj
def evidence(given: Globals, database: str, since: str | None, as_json: bool) -> int:
    """Report, from verified signatures alone, which backups were proven to restore."""
    from backupd.commands import verify as command

    return command.evidence(given.config, database, since, as_json)


@app.command()
@databases_argument
@click.option("--dry-run", is_flag=True, help="Print what would stay and go; delete nothing.")
@json_option
@click.pass_obj
def prune(given: Globals, databases: Sequence[str], dry_run: bool, as_json: bool) -> int:
    """Apply the retention rules: delete the backups that no rule keeps, and what failed backups left.

    Never deleted: the newest backup, the newest proven one, any whose manifest cannot be read, and any at all while the
    newest proof of the database says failed.
    """
    from backupd.commands import prune as command

    return command.prune(given.style, given.config, databases, dry_run=dry_run, as_json=as_json)


@app.command("run")
@click.pass_obj
def run_(given: Globals) -> int:
    """Back up, verify and prune whatever is due, until stopped. SIGHUP reads the configuration again."""
    from backupd.commands import run as command

    return command.run(given.style, given.config)


@app.command("metrics")
@click.pass_obj
def metrics_(given: Globals) -> int:
    """Print what the repository says in Prometheus' text format, for a textfile collector. The daemon has /metrics."""
    from backupd.commands import metrics as command

    return command.show(given.style, given.config)


@app.command()
@click.option("--folder", metavar="DIR", help="Where to play. An earlier demo there is replaced.")
@click.pass_obj
def demo(given: Globals, folder: str | None) -> None:
    """Tell the whole story on a throw-away PostgreSQL and local storage, in under two minutes."""
    from backupd import demo as story

    story.run(given.style, folder)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code that the contract gives its outcome."""
    signals.heed()
    try:
        code = _run(arguments)
        if sys.stdout is not None:  # it is where the caller closed it
            sys.stdout.flush()
    except BrokenPipeError:  # `backupd list | head`
        _forget_output()
        return 141
    except OSError as error:
        _forget_output()
        lost = BackupdError("the result could not be written to stdout", detail=error.strerror or str(error))
        console.show_error(Style(), lost)
        return lost.exit_code
    return code


def _run(arguments: Sequence[str]) -> int:
    given, as_json = Globals(), "--json" in arguments
    try:
        with app.make_context("backupd", list(arguments), obj=given) as context:
            result = app.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        console.emit(error.format_message())
        return 2
    except click.ClickException as error:
        context_of = getattr(error, "ctx", None)
        where = context_of.command_path if context_of else "backupd"
        return _fail(given.style, ConfigError(error.format_message(), hint=f"{where} --help"), as_json)
    except BackupdError as error:
        return _fail(given.style, error, as_json)
    except signals.Terminated as error:
        return _interrupted(given.style, error, 128 + error.number)
    except (KeyboardInterrupt, click.exceptions.Abort) as error:
        return _interrupted(given.style, error, 130)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  (the last resort: a bug, said as such)
        return _fail(given.style, _bug(error), as_json)
    return result if isinstance(result, int) else 0


def _forget_output() -> None:
    """Nobody reads what is still to be written: Python must not complain of that at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _fail(style: Style, error: BackupdError, as_json: bool) -> int:
    if as_json:
        console.emit_json(console.error_document(error))
    else:
        console.show_error(style, error)
    if style.verbose and error.__cause__ is not None:
        traceback.print_exception(error)
    return error.exit_code


def _interrupted(style: Style, error: BaseException, code: int) -> int:
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
    console.say(style, f"interrupted{notes}", "error")
    return code


def _bug(error: Exception) -> BackupdError:
    bug = BackupdError(
        f"unexpected failure: {type(error).__name__}",
        detail=str(error),
        hint="This is a bug in backupd. Run it again with --verbose before the command, and report the traceback.",
    )
    for note in getattr(error, "__notes__", []):
        bug.add_note(note)
    bug.__cause__ = error
    return bug
