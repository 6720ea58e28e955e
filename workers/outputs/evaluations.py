"""The evaluations and comparisons that a run produces: their folder in the store, and their rows in SQL.

The folder is published first; the rows are committed together with the end of the run.
"""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Comparison, Dataset, Evaluation, EvaluationScore, Run
from trainers.configs import CompareConfig
from trainers.configs.stage_table import Product
from trainers.evaluation.results import EvaluationResult, ModelScores
from trainers.evaluation.row_index import INDEX, hash_keys
from trainers.runtime import run_dir as files
from workers.runs.launch import Launch


@dataclass(frozen=True)
class ProducedEvaluation:
    """Rows that the end of the run must commit."""

    evaluations: list[Evaluation] = field(default_factory=list)
    scores: list[EvaluationScore] = field(default_factory=list)
    comparison: Comparison | None = None

    def add_to(self, session: Session) -> None:
        """Add the rows, the scores after the evaluations that they refer to."""
        session.add_all([*self.evaluations, *([self.comparison] if self.comparison is not None else [])])
        session.flush()
        session.add_all(self.scores)


def publish_evaluation(run: Run, launch: Launch, result: dict[str, Any]) -> ProducedEvaluation:
    """Publish the rows and the reports of an evaluation or a comparison, and return its rows of SQL."""
    if run.stage.stage.product not in (Product.evaluation, Product.comparison):
        return ProducedEvaluation()
    folder = launch.run_dir / files.EVALUATION
    published = get_store().publish_folder(folder, f"evaluations/{run.id}/{run.attempt}")
    parsed = EvaluationResult.model_validate(result)
    columns: dict[str, Any] = {
        "job_id": run.job_id,
        "run_id": run.id,
        "n": parsed.n,
        "artifact": published.key,
        "sha256": published.sha256,
        "size_bytes": published.size_bytes,
    }
    if isinstance(launch.config, CompareConfig):
        ids = launch.config.evaluation_labels
        return ProducedEvaluation(comparison=Comparison(evaluations=ids, result=result, **columns))
    columns |= {"dataset_id": launch.dataset_id, "rows_sha256": hash_keys(folder / INDEX)}
    if launch.dataset_id is not None:
        with read_session() as session:
            columns["dataset_sha256"] = session.get_one(Dataset, launch.dataset_id).sha256
    evaluations = [_make_evaluation(launch, model, columns) for model in parsed.models]
    return ProducedEvaluation(evaluations, [score for each in evaluations for score in _list_scores(each)])


def copy_evaluation(source: Run, run: Run) -> ProducedEvaluation:
    """Publish what an equal run has produced as this run's own, and return its rows of SQL.

    Raises OSError or ArtifactCorrupt if the folder cannot be read or stored.
    """
    with read_session() as session:
        found = session.scalars(select(Evaluation).where(col(Evaluation.run_id) == source.id)).all()
    if not found:
        return ProducedEvaluation()
    folder = get_store().fetch_folder(found[0].artifact, found[0].sha256)
    published = get_store().publish_folder(folder, f"evaluations/{run.id}/{run.attempt}")
    owner = {"job_id": run.job_id, "run_id": run.id, "artifact": published.key}
    columns = {"sha256": published.sha256, "size_bytes": published.size_bytes, **owner}
    evaluations = [
        Evaluation(**{**evaluation.model_dump(exclude={"id", "created_at"}), **columns})
        for evaluation in found
    ]
    return ProducedEvaluation(evaluations, [score for each in evaluations for score in _list_scores(each)])


def _list_scores(evaluation: Evaluation) -> list[EvaluationScore]:
    fields = "metric", "value", "signature", "higher_is_better"
    return [
        EvaluationScore(evaluation_id=evaluation.id, **{name: score[name] for name in fields})
        for score in evaluation.scores
    ]


def _make_evaluation(launch: Launch, model: ModelScores, columns: dict[str, Any]) -> Evaluation:
    resolved = launch.models.get(model.role) or launch.models.get(f"others.{model.role}")
    return Evaluation(
        role=model.role,
        model=model.model,
        model_id=resolved.model_id if resolved is not None else None,
        metric=model.scores[0].metric,
        scores=[score.model_dump(mode="json") for score in model.scores],
        provenance=model.provenance,
        **columns,
    )
