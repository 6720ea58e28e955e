"""The version of the control plane, which every worker must have as well.

The control plane writes it into the database when it starts. A worker of another version would read configs
that it does not know, and write rows that the control plane does not expect.
"""

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from app.storage import migrate
from app.storage.database import get_engine, read_session, transaction
from app.tables import STORAGE_STATE_ID, StorageState
from app.workers.host_hardware import find_version

DISTRIBUTION = "tunesmith"
UPDATE_HINT = (
    "Update the host: `pip install --upgrade 'tunesmith=={version}'` with the same extras, or check out the "
    "commit of the control plane in a clone; then repeat `python -m workers join`."
)


def own_version() -> str:
    """Return the version of this installation."""
    return find_version(DISTRIBUTION) or "unknown"


def record_version() -> None:
    """Write the version of this control plane into the database."""
    version, is_state = own_version(), col(StorageState.id) == STORAGE_STATE_ID
    with transaction() as session:
        if session.scalar(select(col(StorageState.version)).where(is_state)) == version:
            return
        if session.execute(update(StorageState).where(is_state).values(version=version)).rowcount:  # type: ignore[attr-defined]
            return
    try:
        with transaction() as session:
            session.add(StorageState(version=version))
    except IntegrityError:
        # Another process has inserted the row at the same time, with the version of its own.
        return


def explain_worker_version() -> str | None:
    """Return why a worker of this version may not start, or None if it may.

    A database that is older than this worker is left to `prepare_database`, which has another remedy.
    """
    current, head = migrate.get_revisions(get_engine())
    if current != head:
        is_older = current is None or current in migrate.list_revisions()
        return None if is_older else explain_mismatch(own_version(), str(head), None, str(current))
    with read_session() as session:
        theirs = session.scalar(select(col(StorageState.version)))
    return explain_mismatch(own_version(), str(head), theirs, str(current))


def explain_mismatch(version: str, revision: str, theirs: str | None, their_revision: str) -> str | None:
    """Return why a worker of a version does not fit the control plane's, or None if it does.

    `theirs` is None where the control plane has written no version that this worker can read.
    """
    if revision == their_revision and theirs in (None, version):
        return None
    return (
        f"This worker is Tunesmith {version} with the database schema {revision}, but the control plane "
        f"is {'a version' if theirs is None else f'Tunesmith {theirs}'} with the schema {their_revision}. "
        + UPDATE_HINT.format(version=theirs or "…")
    )
