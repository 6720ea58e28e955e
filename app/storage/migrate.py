"""Migrations of the database to the newest schema."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

import migrations
from app.once import Once
from app.settings import get_settings

# Any fixed number: it names the advisory lock that migrating processes take in turn.
POSTGRESQL_LOCK_ID = 7_481_100


class UnknownRevision(Exception):
    """This version has no migration with this revision."""


def migrate_database(engine: Engine, revision: str | None = None) -> None:
    """Run the missing migrations, or end at a revision, which may be an older one.

    Raises:
        UnknownRevision: This version has no such revision; a newer version may have it.
    """
    if revision is None:
        upgrade_database(engine)
        return
    known = list_revisions()
    if revision not in known:
        raise UnknownRevision(f"There is no revision {revision}. This version has {known[0]} to {known[-1]}.")
    current, _ = get_revisions(engine)
    if current in known and known.index(current) > known.index(revision):
        downgrade_database(engine, revision)
    else:
        upgrade_database(engine, revision)


def upgrade_database(engine: Engine, revision: str = "head") -> None:
    """Run the missing migrations; processes that start together take turns."""
    with _migration_lock(engine), _connect(engine) as connection:
        # Alembic would load its environment and each migration only to find that none is missing.
        if revision == "head" and _is_newest(connection):
            return
        command.upgrade(alembic_config(connection), revision)
        connection.commit()


def downgrade_database(engine: Engine, revision: str) -> None:
    """Undo the migrations after a revision."""
    with _migration_lock(engine), _connect(engine) as connection:
        command.downgrade(alembic_config(connection), revision)
        connection.commit()


def list_revisions() -> list[str]:
    """Return all revisions, oldest first."""
    return [script.revision for script in _scripts().walk_revisions()][::-1]


def get_revisions(engine: Engine) -> tuple[str | None, str | None]:
    """Return the database's revision and the newest one."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current, _scripts().get_current_head()


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for a connection."""
    alembic = Config()
    alembic.set_main_option("script_location", str(Path(migrations.__file__).parent))
    alembic.attributes["connection"] = connection
    return alembic


@Once
def _scripts() -> ScriptDirectory:
    """Return the migrations of this version, which the process reads once: the readiness check needs them."""
    return ScriptDirectory(str(Path(migrations.__file__).parent))


def _is_newest(connection: Connection) -> bool:
    return MigrationContext.configure(connection).get_current_heads() == tuple(_scripts().get_heads())


@contextmanager
def _connect(engine: Engine) -> Iterator[Connection]:
    """Yield a connection whose migrations wait for others' locks as long as it takes."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = 0"))
        yield connection


@contextmanager
def _migration_lock(engine: Engine) -> Iterator[None]:
    if engine.dialect.name == "sqlite":
        with (get_settings().data_dir / "migrate.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    # Not in a transaction: the server would end it for being idle while the migrations run.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": POSTGRESQL_LOCK_ID})
        try:
            yield
        except BaseException:
            # The lock ends with its connection, which would otherwise keep it in the pool.
            connection.invalidate()
            raise
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": POSTGRESQL_LOCK_ID})
        connection.execute(text("RESET lock_timeout"))
