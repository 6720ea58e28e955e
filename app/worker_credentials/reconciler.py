"""The roles and users in PostgreSQL and Redis follow the rows: what is revoked ends, what is missing is set.

It runs in every API process, which alone has the rights for it. Each action may run twice.
"""

import logging

from sqlalchemy import select, update
from sqlmodel import col

from app.scheduling.periodic import PeriodicThread
from app.storage.database import database_now, get_engine, read_session, transaction
from app.tables import ApiKey, WorkerCredential
from app.worker_credentials.rights import postgresql_role, redis_user
from app.worker_credentials.service import revoke_where, set_active_user

INTERVAL_SECONDS = 10.0
JITTER = 0.2

logger = logging.getLogger(__name__)


def reconcile() -> None:
    """Revoke the credentials of revoked keys, end what is revoked, and set users that Redis has forgotten."""
    if get_engine().dialect.name != "postgresql":
        return
    active_keys = select(col(ApiKey.id)).where(col(ApiKey.revoked_at).is_(None))
    with read_session() as session:
        unended = col(WorkerCredential.ended_at).is_(None)
        credentials = session.scalars(select(WorkerCredential).where(unended)).all()
        keys = set(session.scalars(active_keys))
    if orphans := [one.id for one in credentials if one.key_id and one.key_id not in keys]:
        with transaction() as session:
            revoke_where(session, col(WorkerCredential.id).in_(orphans))
    failures: list[Exception] = []
    for credential in credentials:
        if credential.revoked_at is not None or credential.id in orphans:
            # A host must not keep others from being cut off.
            try:
                end_credential(credential)
            except Exception as error:
                failures.append(error)
    restore_users([one for one in credentials if one.revoked_at is None and one.id not in orphans])
    if failures:
        raise failures[0]


def end_credential(credential: WorkerCredential) -> None:
    """End the connections of revoked credentials, drop their role and user, and record that."""
    try:
        if credential.database_role is not None:
            with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                postgresql_role.end_role(connection, credential.database_role)
    finally:
        if credential.broker_user is not None:
            redis_user.delete_user(credential.broker_user)
    statement = update(WorkerCredential).where(col(WorkerCredential.id) == credential.id)
    with transaction() as session:
        session.execute(statement.values(ended_at=database_now()))
    logger.info("ended the credentials of host %s", credential.name, extra={"credential_id": credential.id})


def create_reconciler() -> PeriodicThread:
    """Create the thread that reconciles until it is stopped."""
    return PeriodicThread("workers' credentials", reconcile, INTERVAL_SECONDS, jitter=JITTER)


def restore_users(credentials: list[WorkerCredential]) -> None:
    """Set the users of active credentials that Redis has forgotten."""
    own = [one for one in credentials if one.broker_user is not None]
    existing = redis_user.list_users() if own else set()
    for credential in own:
        if credential.broker_user not in existing:
            set_active_user(credential.id)
