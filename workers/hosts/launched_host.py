"""The worker's side of a host in a cloud: its row, the timer of its machine, and its end."""

import logging
import os
import signal

from sqlalchemy import Select, select
from sqlmodel import Session, col

from app.settings import Settings
from app.storage.database import read_session
from app.tables import Host, HostStatus

logger = logging.getLogger(__name__)


def load_host(settings: Settings) -> Host | None:
    """Return the row of the host on which this worker runs; None if nobody has launched it.

    Raises:
        SystemExit: The host is about to end, or its row is gone.
    """
    if not settings.host_id:
        return None
    with read_session() as session:
        host = session.get(Host, settings.host_id)
    if host is None or not host.status.wanted:
        status = "unknown" if host is None else host.status
        raise SystemExit(f"The host {settings.host_id} is {status}: its machine takes no more work.")
    return host


def can_deploy(session: Session, host_id: str, job_id: str | None) -> bool:
    """Return whether a worker may claim deployments: its host is ready, and serves more than one job."""
    if job_id is not None:
        return False
    return not host_id or session.scalar(_select_status(host_id)) is HostStatus.ready


class HostRenewal:
    """Renews the timer of the machine with each heartbeat, and ends the worker with its host."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_leaving = False

    def renew(self) -> None:
        """Renew while the host is wanted; else stop this process, as SIGTERM does, so that it saves."""
        if not self._settings.host_id or self._is_leaving:
            return
        with read_session() as session:
            status = session.scalar(_select_status(self._settings.host_id))
        if status is not None and status.wanted:
            if self._settings.host_renewal_file is not None:
                self._settings.host_renewal_file.touch()
            return
        self._is_leaving = True
        logger.warning("the host %s is %s: this worker leaves", self._settings.host_id, status)
        os.kill(os.getpid(), signal.SIGTERM)


def _select_status(host_id: str) -> Select[HostStatus]:
    return select(col(Host.status)).where(col(Host.id) == host_id)
