"""The start of a process: what it depends on is tried, and waited for while it is unavailable.

A setting that waiting cannot correct (an unknown URL, a wrong password, a missing package or migration) ends
the process with a sentence; a database, disk or store that is away is waited for.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from app.keys.first_key import create_first_key
from app.scheduling.availability import TimedCheck, check_store
from app.scheduling.incidents import Incident, describe_error
from app.scheduling.version import explain_worker_version, record_version
from app.settings import Settings, get_settings
from app.settings.secret_files import SecretFileUnusable, load_secret_variables
from app.storage import migrate
from app.storage.artifacts import ArtifactStore
from app.storage.database import DATABASE_UNAVAILABLE, get_engine
from app.storage.opening import get_store
from app.storage.remote.errors import StoreRefused
from trainers.runtime.redaction import redact

FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 10.0
STORE_CHECK = TimedCheck("artifact store", check_store)
# psycopg has no codes for the errors of a connection that PostgreSQL refuses.
REFUSAL_PHRASES = ("password", "does not exist", "no pg_hba.conf entry")
T = TypeVar("T")


class SettingUnusable(Exception):
    """A setting with which the process can never work."""


def load_settings() -> Settings:
    """Return the settings; invalid ones end the process with a sentence."""
    try:
        load_secret_variables()
        return get_settings()
    except SecretFileUnusable as error:
        sys.exit(f"The settings cannot be read: {error}.")
    except SettingsError as error:
        sys.exit(f"The settings cannot be read: {error}. Write lists as JSON.")
    except ValidationError as error:
        # The message does not contain the values: one of them may be a password.
        details = (
            f"{_name_variable(detail['loc'])}: {detail['msg']}."
            for detail in error.errors(include_url=False, include_input=False)
        )
        sys.exit(f"The settings are invalid. {' '.join(details)}")


def _name_variable(location: tuple[int | str, ...]) -> str:
    """Return the environment variable of a setting, whose location is its name or that variable."""
    return f"TUNESMITH_{'_'.join(map(str, location)).upper().removeprefix('TUNESMITH_')}"


@contextmanager
def explain_database_settings() -> Iterator[None]:
    """Convert errors of the database that waiting cannot correct to SettingUnusable."""
    try:
        yield
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingUnusable(
            "TUNESMITH_DATABASE_URL is not the URL of a supported database: "
            "write postgresql://user:password@host/name, or leave it empty for SQLite."
        ) from error
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        folder = get_settings().data_dir
        raise SettingUnusable(
            f"The data directory {folder} cannot be used: {error.strerror}. Set TUNESMITH_DATA_DIR."
        ) from error
    except DATABASE_UNAVAILABLE as error:
        reason = describe_error(error)
        if any(phrase in reason for phrase in REFUSAL_PHRASES):
            raise SettingUnusable(
                f"The database refuses the connection: {reason}. Correct TUNESMITH_DATABASE_URL."
            ) from error
        raise


def prepare_database() -> None:
    """Migrate the embedded database; require that any other one was migrated before.

    Raises:
        SettingUnusable: The URL or the password is wrong, or the migration is missing.
        OSError: The data directory is unavailable. Instead, it can be an error of DATABASE_UNAVAILABLE.
    """
    with explain_database_settings():
        engine = get_engine()
        if engine.dialect.name == "sqlite":
            migrate.upgrade_database(engine)
        current, head = migrate.get_revisions(engine)
    if current != head:
        raise SettingUnusable(
            f"The database is at revision {current}, but this version needs {head}. "
            "Run `python -m app migrate`."
        )


def prepare_control_plane() -> None:
    """Prepare the database for the control plane: its version, which workers must have, and the first key.

    Raises as `prepare_database`.
    """
    prepare_database()
    create_first_key(get_settings())
    record_version()


def prepare_worker() -> None:
    """Prepare the database for a worker.

    Raises:
        SettingUnusable: As above, or the worker has another version than the control plane.
        OSError: As above.
    """
    with explain_database_settings():
        if (message := explain_worker_version()) is not None:
            raise SettingUnusable(message)
    prepare_database()


def open_store() -> ArtifactStore:
    """Return the artifact store, before its first use; raises SettingUnusable for a URL that cannot work."""
    url = redact(get_settings().artifacts_url)
    try:
        return get_store()
    except ImportError as error:
        hint = _install_hint(url.partition("://")[0])
        raise SettingUnusable(
            f"TUNESMITH_ARTIFACTS_URL is {url}, which needs a package that is not installed: {hint}"
        ) from error
    except StoreRefused as error:
        raise SettingUnusable(f"The artifact store cannot be used: {error}") from error
    except ValueError as error:
        raise SettingUnusable(f"TUNESMITH_ARTIFACTS_URL is {url}, which cannot be used: {error}.") from error


def prepare_store() -> None:
    """Write and read a file of the artifact store, within a time limit; raises whatever is wrong."""
    open_store()
    try:
        STORE_CHECK.run()
    except StoreRefused as error:
        raise SettingUnusable(f"The artifact store cannot be used: {error}") from error


def prepare_or_exit(prepare: Callable[[], T], name: str) -> T:
    """Prepare, and wait as long as that takes; an unusable setting ends the process with a sentence.

    SIGINT and SIGTERM end the wait, and the process, at once.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    incident, seconds = Incident(name, consequence="; waiting until it is available"), FIRST_WAIT_SECONDS
    while True:
        try:
            prepared = prepare()
        except SettingUnusable as unusable:
            sys.exit(str(unusable))
        except Exception as error:
            incident.record(error)
            time.sleep(seconds)
            seconds = min(2 * seconds, MAX_WAIT_SECONDS)
        else:
            incident.resolve()
            return prepared


class Preparation:
    """Prepares the database of a running service: at once, or in a thread until it succeeds."""

    def __init__(self) -> None:
        self._incident = Incident("preparation of the database", consequence="; requests get 503 meanwhile")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)

    def start(self) -> None:
        """Prepare the database; while it is unavailable, start the thread."""
        if not self._try():
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread after its current attempt."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._incident.forget()

    def _run(self) -> None:
        seconds = FIRST_WAIT_SECONDS
        while not self._stopping.wait(seconds) and not self._try():
            seconds = min(2 * seconds, MAX_WAIT_SECONDS)

    def _try(self) -> bool:
        try:
            prepare_control_plane()
        except Exception as error:
            # A running service also waits for what a person must correct, such as a missing migration.
            self._incident.record(error)
            return False
        self._incident.resolve()
        return True


def _install_hint(scheme: str) -> str:
    packages = {"s3": "boto3>=1.43", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
    package = packages.get(scheme)
    return f"run `pip install '{package}'`." if package else "install fsspec's package for it."


@contextmanager
def exit_on_errors() -> Iterator[None]:
    """End a command with a sentence if the database cannot be used."""
    try:
        yield
    except SettingUnusable as unusable:
        sys.exit(str(unusable))
    except (OSError, *DATABASE_UNAVAILABLE) as error:
        sys.exit(f"The database cannot be reached: {describe_error(error)}.")


def open_database() -> None:
    """Prepare the database for a command, which ends with a sentence if it cannot be used."""
    with exit_on_errors():
        prepare_database()
