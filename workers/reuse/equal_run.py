"""A run that takes the output of an equal one, so that nothing is computed twice."""

import logging
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.runs import lifecycle
from app.runs.names import is_of_preflight
from app.scheduling.incidents import describe_error
from app.settings import Settings
from app.storage.database import DATABASE_UNAVAILABLE, read_session, transaction
from app.storage.manifest import ArtifactCorrupt
from app.tables import Dataset, Evaluation, Job, Model, Run, RunStatus
from trainers.configs import Product, StageKind
from workers.outputs.evaluations import copy_evaluation
from workers.reuse.fingerprint import compute_fingerprint, describe_inputs, is_determined
from workers.runs.launch import Launch
from workers.runs.results import name_part

logger = logging.getLogger(__name__)

# The newest of these whose output still exists is reused.
MAX_CANDIDATES = 20
REUSED = (Product.model, Product.datasets, Product.evaluation)


def reuse_output(run: Run, launch: Launch, settings: Settings) -> tuple[dict[str, Any], bool]:
    """Return the run's inputs as columns, and whether it has ended with the output of an equal run.

    Raises StaleAttempt if this attempt no longer holds the run.
    """
    try:
        with read_session() as session:
            reuses = _may_reuse(session, run)
        inputs = describe_inputs(run, launch, settings)
        columns = {"inputs": inputs, "fingerprint": compute_fingerprint(run, inputs)}
        return columns, reuses and _end_as_equal(run, columns)
    except (*DATABASE_UNAVAILABLE, OSError, ArtifactCorrupt) as error:
        # The output is the same, and only later.
        logger.warning("no equal run was sought: %s", describe_error(error), extra={"run_id": run.id})
        return {}, False


def _may_reuse(session: Session, run: Run) -> bool:
    """Return whether the run's job asks for it, and the stage's whole output is in rows and the store."""
    # An export also leaves files elsewhere. A comparison, like a gate, is decided anew: its config names
    # evaluations by their stages, which are others in another job.
    is_reusable = run.stage is not StageKind.export and run.stage.stage.product in REUSED
    if not is_reusable or not is_determined(run.stage_config()):
        return False
    return session.get_one(Job, run.job_id).spec.get("reuse") is True


def _end_as_equal(run: Run, columns: dict[str, Any]) -> bool:
    """End the run with the output of an equal one; return whether there is one whose output still exists."""
    equal = select(Run).where(
        col(Run.fingerprint) == columns["fingerprint"],
        col(Run.status) == RunStatus.succeeded,
        col(Run.id) != run.id,
    )
    with read_session() as session:
        candidates = session.scalars(equal.order_by(col(Run.id).desc()).limit(MAX_CANDIDATES)).all()
        found = next((other for other in candidates if _has_output(session, other)), None)
    if found is None:
        return False
    evaluation = copy_evaluation(found, run)
    source = found.reused_from or found.id
    output = {name: getattr(found, name) for name in ("model_id", "step", "total_steps")}
    with transaction() as session:
        if not _has_output(session, found):
            return False
        output["result"] = _name_datasets(session, run, found.result)
        evaluation.add_to(session)
        ended = lifecycle.move(
            session,
            run.id,
            RunStatus.succeeded,
            guards=lifecycle.lease_guards(run.attempt),
            values={**columns, **output, "reused_from": source},
            data={"reused_from": source},
        )
        if ended is None:
            raise lifecycle.StaleAttempt(f"attempt {run.attempt} no longer holds {run.id}")
    logger.info("reused the output of %s", source, extra={"run_id": run.id})
    return True


def _name_datasets(session: Session, run: Run, result: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the result, with parts of a preflight, which lists do not show, renamed to those of the run."""
    if result is None or "datasets" not in result:
        return result
    parts = []
    for part in result["datasets"]:
        dataset = session.get_one(Dataset, part["id"])
        name = name_part(run, part["part"])
        if is_of_preflight(dataset.name) and not is_of_preflight(name):
            dataset.name = name
        parts.append(part | {"name": dataset.name})
    return result | {"datasets": parts}


def _has_output(session: Session, run: Run) -> bool:
    """Return whether the output of a run exists; a transaction keeps models and datasets until it ends."""
    if run.stage.stage.product is Product.evaluation:
        # They disappear with their job.
        of_run = select(Evaluation).where(col(Evaluation.run_id) == run.id).limit(1)
        return session.scalars(of_run).first() is not None
    ids = [dataset["id"] for dataset in (run.result or {}).get("datasets", [])]
    datasets = [session.get(Dataset, dataset_id, with_for_update=True) for dataset_id in ids]
    if any(dataset is None or dataset.deleted_at is not None for dataset in datasets):
        return False
    if run.model_id is None:
        return True
    model = session.get(Model, run.model_id, with_for_update=True)
    return model is not None and model.deleted_at is None
