"""Run the service on one machine: the API, the gateway and a worker, without servers to install.

python -m app
python -m app keys create --name me --scope admin
python -m app migrate
python -m app verify
python -m app gc --dry-run
python -m app backup /backups
python -m app move --to postgresql://…
python -m app rescue --list
"""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app import logs
from app.backup.command import run_backup, run_move, run_restore
from app.evals.imports.command import run_import
from app.http.auth import CREATE_KEY_HINT, has_active_key
from app.http.processes.server import serve
from app.keys import service as keys
from app.keys.schemas import KeyCreate, KeyUpdate
from app.rescues.command_line import rescue_command
from app.retention.command import run_gc
from app.scheduling.incidents import describe_error, report_thread_deaths
from app.scheduling.startup import (
    SettingUnusable,
    exit_on_errors,
    explain_database_settings,
    load_settings,
    open_database,
    open_store,
    prepare_control_plane,
)
from app.settings import get_settings
from app.settings.http import LogLevelName
from app.storage import migrate
from app.storage.database import DATABASE_UNAVAILABLE, get_engine, read_session, transaction
from app.storage.opening import get_store
from app.storage.verify import VerifyProgress, verify_store
from app.tables import ApiKey, Scope
from serving.http.addresses import is_loopback

PROGRAM = "python -m app"

logger = logging.getLogger(__name__)

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
keys_cli = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
cli.add_typer(keys_cli, name="keys")
cli.command("rescue")(rescue_command)


def main(arguments: Sequence[str]) -> None:
    """Run the command line; an error is printed as a sentence, with exit status 1."""
    run_command(arguments, PROGRAM)


def run_command(arguments: Sequence[str], prog_name: str) -> None:
    """Run the command line under the name that its help shows."""
    load_settings()
    cli(arguments, prog_name=prog_name)


@cli.callback(invoke_without_command=True)
def serve_command(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: TUNESMITH_HOST]")] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port to listen on; 0 chooses a free one. [default: TUNESMITH_PORT]"
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Number of processes on the port. [default: TUNESMITH_PROCESSES]"),
    ] = None,
    log_level: Annotated[
        LogLevelName | None,
        typer.Option(case_sensitive=False, help="Minimum level to log. [default: TUNESMITH_LOG_LEVEL]"),
    ] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Start no worker on this machine.")] = False,
    with_examples: Annotated[
        bool,
        typer.Option("--with-examples", help="Create a tiny model and datasets to try the service with."),
    ] = False,
) -> None:
    """Serve the API, the gateway and one worker, unless a command is given."""
    settings = get_settings()
    logs.configure_logging(log_level or settings.log_level)
    report_thread_deaths()
    if context.invoked_subcommand is not None:
        return
    host = settings.host if host is None else host
    _refuse_unusable_settings(host)
    serve(
        host,
        settings.port if port is None else port,
        settings.processes if processes is None else processes,
        with_worker=not no_worker,
        with_examples=with_examples,
    )


@cli.command("migrate")
def migrate_command(
    to: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="Schema to end at, such as 0031: an older one undoes the migrations after it, and what they "
            "have stored. [default: the newest]",
        ),
    ] = None,
) -> None:
    """Migrate the database to the newest schema, or to the one of an older version before its return."""
    with exit_on_errors(), explain_database_settings():
        engine = get_engine()
        try:
            migrate.migrate_database(engine, to)
        except migrate.UnknownRevision as error:
            sys.exit(str(error))
        print(f"The database is at revision {migrate.get_revisions(engine)[0]}.")


@cli.command("verify")
def verify_command() -> None:
    """Read every stored byte and compare it with its hash; exit with 1 if anything is wrong."""
    open_database()
    faults = 0
    try:
        for fault in verify_store(get_store(), _make_progress_printer()):
            faults += 1
            print(f"{fault.kind}\t{fault.key}\t{fault.message}", flush=True)
    except OSError as error:
        sys.exit(f"The artifact store cannot be read: {error}.")
    if faults:
        sys.exit(f"{faults} {'artifact is' if faults == 1 else 'artifacts are'} damaged, missing or unknown.")
    print("Every artifact is as it was published.")


@cli.command("gc")
def gc_command(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
) -> None:
    """Apply the retention settings now, and delete the files that no row names."""
    open_database()
    run_gc(get_settings(), dry_run=dry_run)


@cli.command("backup")
def backup_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of this and later backups.")],
    keep: Annotated[int, typer.Option(min=1, help="Number of snapshots to keep in the directory.")] = 7,
) -> None:
    """Back up the database and the artifacts that it names; the service may be running."""
    open_database()
    run_backup(directory, keep)


@cli.command("restore")
def restore_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the backups.")],
    snapshot: Annotated[str | None, typer.Option(help="Snapshot to restore. [default: the newest]")] = None,
) -> None:
    """Restore a backup into a new database and an empty artifact store."""
    with exit_on_errors(), explain_database_settings():
        run_restore(directory, snapshot)


@cli.command("move")
def move_command(
    to: Annotated[
        str,
        typer.Option(help="URL of an empty database, postgresql://user:password@host/name."),
    ],
    artifacts: Annotated[
        str, typer.Option(help="URL of an empty artifact store, such as s3://bucket/prefix. [default: stays]")
    ] = "",
) -> None:
    """Move the embedded database into PostgreSQL, all or nothing; the service must be stopped."""
    open_database()
    with exit_on_errors():
        open_store()
        run_move(get_settings(), to, artifacts)


@cli.command("import-evals")
def import_evals_command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH…", help="Files of evals, runs, output items and rows, or folders."),
    ],
) -> None:
    """Import evals that were exported from OpenAI; a repetition changes nothing."""
    open_database()
    run_import(get_settings(), paths)


@keys_cli.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Purpose or owner of the key.")],
    scope: Annotated[list[Scope], typer.Option(help="Allowed kind of requests; can be repeated.")],
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Maximum rate of requests to models. [default: no limit]")
    ] = None,
    concurrent_requests: Annotated[
        int | None, typer.Option(help="Maximum number of simultaneous ones. [default: no limit]")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(help="Maximum number of tokens on a day. [default: no limit]")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model that it may use; can be repeated, and end with *. [default: all]"),
    ] = None,
) -> None:
    """Create an API key and print it; it is not shown again."""
    try:
        body = KeyCreate(
            name=name,
            scopes=scope,
            requests_per_minute=requests_per_minute,
            concurrent_requests=concurrent_requests,
            tokens_per_day=tokens_per_day,
            models=model or None,
        )
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        sys.exit(f"--{str(details['loc'][0]).replace('_', '-')} {details['input']}: {details['msg']}.")
    open_database()
    with transaction() as session:
        key, secret = keys.create_key(session, body)
    print(f"{key.id} has the scopes {', '.join(key.scopes)}. The key is shown only now:", file=sys.stderr)
    print(secret)


@keys_cli.command("list")
def list_keys() -> None:
    """List the API keys, oldest first."""
    open_database()
    with read_session() as session:
        for key in keys.list_all_keys(session):
            print(_format_key(key))


@keys_cli.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key.")]) -> None:
    """Revoke an API key, at once."""
    open_database()
    with transaction() as session:
        try:
            key = keys.revoke_key(session, key_id)
        except keys.KeyNotFound as error:
            sys.exit(f"{error.message} List the keys with `{PROGRAM} keys list`.")
    print(f"{key.id} ({key.name}) is revoked.")


def _refuse_unusable_settings(host: str) -> None:
    """Exit if the service could never work with its settings, or if it would be open to other machines.

    What is only unavailable is waited for by the service itself, which responds with 503 meanwhile. Until the
    database shows whether a key exists, requests from other machines are refused.
    """
    try:
        if open_store().is_api:
            sys.exit(
                "TUNESMITH_ARTIFACTS_URL names an API, which is for the workers of other hosts. The service "
                "itself needs a bucket or a folder."
            )
        prepare_control_plane()
        if not is_loopback(host) and not _has_key():
            message = f"Refusing to listen on {host} without an API key: anyone could use it. "
            sys.exit(message + CREATE_KEY_HINT)
    except SettingUnusable as unusable:
        sys.exit(str(unusable))
    except (OSError, *DATABASE_UNAVAILABLE) as error:
        logger.error("the database is unavailable; waiting for it: %s", describe_error(error))


def _make_progress_printer() -> Callable[[VerifyProgress], None]:
    """Return a function that prints progress to a terminal at each call, to a file every tenth."""
    last = -1

    def report(progress: VerifyProgress) -> None:
        nonlocal last
        tenth = 10 * progress.n_bytes // max(progress.total_bytes, 1)
        line = (
            f"{progress.n_artifacts} of {progress.total_artifacts} artifacts, "
            f"{progress.n_bytes / 1e9:.1f} of {progress.total_bytes / 1e9:.1f} GB"
        )
        if sys.stderr.isatty():
            is_last = progress.n_artifacts == progress.total_artifacts
            print(f"\r{line}  ", end="\n" if is_last else "", file=sys.stderr, flush=True)
        elif tenth > last:
            print(line, file=sys.stderr, flush=True)
        last = tenth

    return report


def _has_key() -> bool:
    with read_session() as session:
        return has_active_key(session)


def _format_key(key: ApiKey) -> str:
    limits = [
        f"{limit} {name.replace('_', ' ')}"
        for name in KeyUpdate.model_fields
        if (limit := getattr(key, name)) is not None
    ]
    state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else ", ".join([*key.scopes, *limits])
    return f"{key.id}  {key.hint}…  {key.name}  {state}"


if __name__ == "__main__":
    main(sys.argv[1:])
