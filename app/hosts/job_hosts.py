"""The host of a job: what is checked when the job is posted, and the row by which a worker launches it.

Runs of the job on the queue `cuda` are claimed by the workers of its host alone; all others run anywhere.
"""

from collections.abc import Sequence

from sqlmodel import Session

from app.hosts.offers import require_attended, require_offer
from app.hosts.service import read_now
from app.http.errors import UnprocessableContent, field_error
from app.jobs.graph.resolved_stage import ResolvedStage
from app.keys.limits import check_scope
from app.storage.database import insert_rows
from app.tables import JobHost, Scope
from app.workers.service import AliveWorkers
from trainers.configs import Queue, StageKind
from trainers.configs.clouds.offers import HostSpec, Offer
from trainers.configs.stage_config import AnyStage

# What these keep ready would end with the host.
KEPT_ELSEWHERE = frozenset({StageKind.deploy, StageKind.promote})


def can_use_host(stage: AnyStage) -> bool:
    """Return whether a stage that names no hardware runs on the host of its job."""
    return Queue.cuda in stage.suitable_queues and StageKind(stage.stage) not in KEPT_ELSEWHERE


def runs_on_host(stage: ResolvedStage) -> bool:
    """Return whether a stage of a job with a host runs on it."""
    return stage.queue is Queue.cuda and stage.kind not in KEPT_ELSEWHERE


def check_host(
    session: Session, alive: AliveWorkers, key_id: str, spec: HostSpec, stages: Sequence[ResolvedStage]
) -> Offer:
    """Return the offer of the host that a job asks for.

    Raises Forbidden, the errors of `require_offer`, and UnprocessableContent if no stage can use the host or
    one needs more GPUs than it has.
    """
    check_scope(session, key_id, Scope.admin)
    offer = require_offer(session, alive, spec, "host.")
    errors: list[UnprocessableContent] = []
    on_host = {i: stage for i, stage in enumerate(stages) if runs_on_host(stage)}
    if not on_host:
        errors.append(
            field_error(
                "host",
                "No stage of the job would run on it: a host serves the queue cuda, and a deployment would "
                "end with it. Omit host, or `queue` of a stage that can use a GPU.",
            )
        )
    for position, stage in on_host.items():
        if stage.config.device_count > offer.gpu_count:
            has = "1 GPU" if offer.gpu_count == 1 else f"{offer.gpu_count} GPUs"
            message = (
                f"The stage needs {stage.config.device_count} GPUs, and the host {offer.type} has {has}."
            )
            errors.append(field_error(f"stages.{position}.devices", message))
    if errors:
        fields = [field for error in errors for field in error.fields or ()]
        raise UnprocessableContent(f"The job is invalid. {errors[0].message}", fields=fields)
    return offer


def insert_job_host(session: Session, job_id: str, spec: HostSpec, offer: Offer) -> None:
    """Insert the row by which a worker launches the host, once a run of the job waits for it."""
    row = JobHost(
        job_id=job_id,
        cloud=spec.cloud,
        type=offer.type,
        region=offer.region,
        spot=spec.spot,
        max_usd=spec.max_usd,
    )
    insert_rows(session, JobHost, [row.model_dump()])


def check_restart(session: Session, alive: AliveWorkers, key_id: str, job_id: str) -> None:
    """Check that a key may start a job again whose host costs money, and that it can be launched.

    Earlier hosts that did not become ready are not counted against it any more.

    Raises Forbidden, HostsNeedKeys and CloudUnattended.
    """
    wanted = session.get(JobHost, job_id)
    if wanted is not None:
        check_scope(session, key_id, Scope.admin)
        require_attended(session, alive, wanted.cloud)
        wanted.counted_from, wanted.unoffered_at = read_now(session), None
