"""The whole service on one machine: API, gateway and a worker, without a server to install.

python -m app
python -m app keys create --name me --scope admin
python -m app migrate
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from app import logs
from app.http.auth import CREATE_KEY_HINT, has_active_key
from app.http.server import serve
from app.keys import service as keys
from app.keys.schemas import KeyLimits
from app.settings import get_settings
from app.storage import migrate
from app.storage.database import get_engine, read_session, transaction
from app.tables import ApiKey, Scope
from serving.http.addresses import is_loopback


def main(arguments: Sequence[str]) -> None:
    """Do what the command line asks; a refusal is a sentence and exit status 1."""
    _check_settings()
    options = _parser().parse_args(arguments)
    logs.configure_logging(options.log_level or get_settings().log_level)
    options.run(options)


def _check_settings() -> None:
    try:
        get_settings()
    except SettingsError as error:
        sys.exit(f"The settings cannot be read: {error}. Write lists as JSON.")
    except ValidationError as error:
        # The values stay untold: one of them may be a password.
        faults = (
            f"{'_'.join(['TUNESMITH', *map(str, fault['loc'])]).upper()}: {fault['msg']}."
            for fault in error.errors(include_url=False, include_input=False)
        )
        sys.exit(f"The settings cannot be used. {' '.join(faults)}")


def _parser() -> argparse.ArgumentParser:
    settings = get_settings()
    parser = argparse.ArgumentParser(
        prog="python -m app", description="Serve the API, the gateway and one worker."
    )
    parser.set_defaults(run=_serve)
    parser.add_argument("--host", default=settings.host)
    parser.add_argument("--port", type=int, default=settings.port, help="0 takes a free one")
    parser.add_argument("--log-level")
    parser.add_argument("--no-worker", action="store_true", help="serve without a worker on this machine")
    parser.add_argument(
        "--with-examples", action="store_true", help="make a tiny model and data sets to try things with"
    )
    commands = parser.add_subparsers(title="commands", description="Without one, the service is started.")
    commands.add_parser("migrate", help="bring the database to the newest schema").set_defaults(run=_migrate)
    _add_keys(commands.add_parser("keys", help="make, list and revoke API keys"))
    return parser


def _add_keys(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", help="make a key and print it, this once")
    create.add_argument("--name", required=True)
    create.add_argument("--scope", type=Scope, action="append", required=True, help=", ".join(Scope))
    create.add_argument("--requests-per-minute", type=int, help="most requests to models; default: no limit")
    create.add_argument("--concurrent-requests", type=int, help="most of them at once; default: no limit")
    create.set_defaults(run=_create_key)
    commands.add_parser("list", help="list the keys").set_defaults(run=_list_keys)
    revoke = commands.add_parser("revoke", help="make a key useless at once")
    revoke.add_argument("id")
    revoke.set_defaults(run=_revoke_key)


def _serve(options: argparse.Namespace) -> None:
    _prepare_database()
    if not is_loopback(options.host) and not _has_key():
        sys.exit(
            f"Refusing to listen on {options.host}: no API key exists, so anyone could use the service. "
            + CREATE_KEY_HINT
        )
    # uvicorn sends its signal to the process once more when it is done; there is still a worker to end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    serve(options.host, options.port, with_worker=not options.no_worker, with_examples=options.with_examples)


def _migrate(options: argparse.Namespace) -> None:
    migrate.upgrade_database(get_engine())
    print(f"The database is at revision {migrate.get_revisions(get_engine())[0]}.")


def _create_key(options: argparse.Namespace) -> None:
    asked = {name: getattr(options, name) for name in KeyLimits.model_fields}
    try:
        limits = KeyLimits(**asked).model_dump()
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        sys.exit(f"--{str(fault['loc'][0]).replace('_', '-')} {fault['input']}: {fault['msg']}.")
    _prepare_database()
    with transaction() as session:
        key, secret = keys.create(session, options.name, options.scope, limits)
    print(f"{key.id} with {', '.join(key.scopes)}. The key is shown only now:", file=sys.stderr)
    print(secret)


def _list_keys(options: argparse.Namespace) -> None:
    _prepare_database()
    with read_session() as session:
        for key in keys.every(session):
            print(_line(key))


def _revoke_key(options: argparse.Namespace) -> None:
    _prepare_database()
    with transaction() as session:
        try:
            key = keys.revoke(session, options.id)
        except keys.KeyNotFound as error:
            sys.exit(f"{error.message} List them with `python -m app keys list`.")
    print(f"{key.id} ({key.name}) is revoked.")


def _prepare_database() -> None:
    """Migrate the embedded database; a team's must have been migrated before."""
    engine = _engine()
    try:
        if engine.dialect.name == "sqlite":
            migrate.upgrade_database(engine)
        current, head = migrate.get_revisions(engine)
    except OperationalError as error:
        sys.exit(f"The database cannot be reached: {logs.redact(str(error.orig)).strip()}")
    if current != head:
        sys.exit(f"The database is at revision {current}, not {head}. Run `python -m app migrate`.")


def _engine() -> Engine:
    try:
        return get_engine()
    except OSError as error:
        folder = get_settings().data_dir
        sys.exit(f"The data directory {folder} cannot be made: {error.strerror}. Set TUNESMITH_DATA_DIR.")
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError):
        sys.exit(
            "TUNESMITH_DATABASE_URL is not the URL of a database that can be used: "
            "write postgresql://user:password@host/name, or leave it empty for SQLite."
        )


def _has_key() -> bool:
    with read_session() as session:
        return has_active_key(session)


def _line(key: ApiKey) -> str:
    limits = [
        f"{most} {name.replace('_', ' ')}" for name in KeyLimits.model_fields if (most := getattr(key, name))
    ]
    state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else ", ".join([*key.scopes, *limits])
    return f"{key.id}  {key.hint}…  {key.name}  {state}"


if __name__ == "__main__":
    main(sys.argv[1:])
