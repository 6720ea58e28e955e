"""The evaluations that a comparison reads, as verified folders on this host."""

from sqlmodel import col, select

from app.storage.artifacts import get_store
from app.storage.database import read_session
from app.tables import Evaluation, Run
from trainers.configs import EvaluationFolder, StageEvaluation
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
