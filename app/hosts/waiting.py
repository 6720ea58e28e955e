"""What a run waits for whose job has a host of its own."""

from sqlalchemy import select
from sqlmodel import Session, col

from app.tables import Host, HostStatus, JobHost

STEPS = {
    HostStatus.launching: "is being launched",
    HostStatus.booting: "is booting",
    HostStatus.joining: "runs, and its worker is being installed",
    HostStatus.ready: "is ready, and its worker is busy or about to take the run",
    HostStatus.stopping: "is stopping; another one follows",
    HostStatus.terminating: "is being terminated; another one follows",
}


def explain_host_wait(session: Session, job_id: str) -> str:
    """Return what the runs of a job wait for that only its host may take."""
    newest = select(Host).where(col(Host.job_id) == job_id).order_by(col(Host.id).desc()).limit(1)
    host = session.scalars(newest).first()
    wanted = session.get(JobHost, job_id)
    if host is None or host.status.finished:
        kind = f"a host {wanted.type} of {wanted.cloud}" if wanted is not None else "a host"
        last = f" The last one, {host.id}, ended: {_describe_end(host)}." if host is not None else ""
        return f"Waits for {kind}, which is requested within seconds, or later after a failure.{last}"
    error = host.problem or host.error
    failed = f" The last request failed: {error['message']}" if error is not None else ""
    return f"Waits for the host {host.id}, which {STEPS[host.status]}.{failed}"


def _describe_end(host: Host) -> str:
    if host.error is not None:
        return str(host.error["message"]).rstrip(".")
    return str(host.stop_reason).replace("_", " ")
