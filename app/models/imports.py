"""Import of a model from a folder or the hub, by a job of one stage."""

from sqlmodel import Session

from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.models import references
from app.models.schemas import ModelImport
from app.models.templates import check_template
from app.settings import Settings
from app.tables import Job
from trainers.configs import ImportConfig

MAX_JOB_NAME = 200


def create_import(session: Session, settings: Settings, body: ModelImport, created_by: str) -> Job:
    """Queue the job that imports a model; raises the errors of `create_job`."""
    # The job would report errors under the fields of its stage, which this request does not have.
    check_template(body.source, "source")
    references.resolve_model(session, body.source, "source")
    if body.base is not None:
        references.resolve_model(session, body.base, "base")
    stage = ImportConfig(stage="import", model=body.source, base=body.base)
    name = body.name or f"import of {body.source}"[:MAX_JOB_NAME]
    spec = JobCreate(name=name, queue=body.queue, stages=[stage])
    job, _ = jobs.create_job(session, settings, spec, created_by, None)
    return job
