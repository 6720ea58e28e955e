"""The evaluations that a comparison reads, as verified folders on this host."""

from typing import Any

from sqlmodel import col, select

from app.evaluations.latest import find_latest_evaluation
from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Dataset, Evaluation, Run
from trainers.configs import EvaluationFolder, GateConfig, LatestEvaluation, StageEvaluation
from trainers.configs.stages.evaluations.gate import EVALUATION_PREFIX
from trainers.runtime.errors import ConfigInvalid
from workers.inputs.errors import InputEvaluationNotFound, InputRefused


def fetch_evaluation(job_id: str, reference: str | StageEvaluation | EvaluationFolder) -> EvaluationFolder:
    """Return the folder of an evaluation, fetched by its hash.

    Raises LaunchError, and OSError or ArtifactCorrupt if the folder cannot be fetched.
    """
    if isinstance(reference, EvaluationFolder):
        raise InputRefused(ConfigInvalid("A job names evaluations by their ids, not by folders."))
    evaluation = _find_evaluation(job_id, reference)
    folder = get_store().fetch_folder(evaluation.artifact, evaluation.sha256)
    return EvaluationFolder(folder=str(folder), role=evaluation.role, id=evaluation.id)


def fetch_gate_inputs(job_id: str, gate: GateConfig) -> GateConfig:
    """Return the gate with folders in place of its evaluations; raises the errors of `fetch_evaluation`."""
    if isinstance(gate.evaluation, EvaluationFolder) or isinstance(gate.against, EvaluationFolder):
        raise InputRefused(ConfigInvalid("A job names evaluations by their ids, not by folders."))
    own = StageEvaluation(stage=gate.evaluation, role=gate.role)
    changes: dict[str, Any] = {"evaluation": fetch_evaluation(job_id, own)}
    against = gate.against
    if isinstance(against, LatestEvaluation):
        against = _find_latest(_find_evaluation(job_id, own), gate, against.deployment)
    elif isinstance(against, str) and not against.startswith(EVALUATION_PREFIX):
        against = StageEvaluation(stage=gate.evaluation, role=against)
    if isinstance(against, str | StageEvaluation):
        changes["against"] = fetch_evaluation(job_id, against)
    return gate.model_copy(update=changes)


def _find_latest(own: Evaluation, gate: GateConfig, deployment: str) -> str:
    """Return the id of the latest evaluation of a deployed model on the same dataset."""
    metric = gate.metric or own.metric
    with read_session() as session:
        dataset = session.get(Dataset, own.dataset_id) if own.dataset_id is not None else None
        found = find_latest_evaluation(session, deployment, metric, dataset)
    if found is None:
        raise InputEvaluationNotFound(
            f"No evaluation of the model of deployment {deployment!r} measures {metric} on the same dataset.",
            "Evaluate the deployed model on it first.",
        )
    return found.id


def _find_evaluation(job_id: str, reference: str | StageEvaluation) -> Evaluation:
    if isinstance(reference, str):
        statement = select(Evaluation).where(col(Evaluation.id) == reference)
        name = f"evaluation {reference}"
    else:
        statement = (
            select(Evaluation)
            .join(Run, col(Run.id) == col(Evaluation.run_id))
            .where(col(Run.job_id) == job_id, col(Run.name) == reference.stage)
            .where(col(Evaluation.role) == reference.role)
        )
        name = f"evaluation of the model {reference.role!r} by the stage {reference.stage!r}"
    with read_session() as session:
        evaluation = session.exec(statement).one_or_none()
    if evaluation is None:
        raise InputEvaluationNotFound(
            f"There is no {name}.", "List the evaluations with GET /api/v1/evaluations."
        )
    return evaluation
