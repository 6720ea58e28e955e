"""Stored evaluations: lists by dataset, model, job and metric, and single ones with their run's result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query
from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlmodel import Session, col

from app.evaluations.schemas import EvaluationView, evaluation_view
from app.http.errors import NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.storage.database import read_session
from app.tables import Evaluation, EvaluationScore, Run
from trainers.evaluation.results import EvaluationResult
from trainers.runtime.error_codes import ErrorCode

MAX_FILTER_CHARACTERS = 1024


class EvaluationNotFound(NotFound):
    """No evaluation has this id."""

    code = ErrorCode.evaluation_not_found


@dataclass(frozen=True)
class EvaluationFilters:
    """The evaluations to list: those that have every value that is not None."""

    dataset: str | None = None
    model: str | None = None
    job: str | None = None
    run: str | None = None
    metric: str | None = None


_Filter = Annotated[str | None, Query(max_length=MAX_FILTER_CHARACTERS)]


def evaluation_filters(
    dataset: Annotated[
        _Filter, Query(description="Return only evaluations on the dataset with this id.")
    ] = None,
    model: Annotated[
        _Filter,
        Query(description="Return only those of the model with this id of the registry, or this name."),
    ] = None,
    job: Annotated[_Filter, Query(description="Return only evaluations of the job with this id.")] = None,
    run: Annotated[_Filter, Query(description="Return only evaluations of the run with this id.")] = None,
    metric: Annotated[_Filter, Query(description="Return only evaluations with this metric.")] = None,
) -> EvaluationFilters:
    """Return the filters of a query."""
    return EvaluationFilters(dataset, model, job, run, metric)


def list_evaluations(
    session: Session, paging: PageQuery, filters: EvaluationFilters
) -> tuple[Sequence[Evaluation], str | None]:
    """Return a page of evaluations, newest first."""
    statement = select(Evaluation)
    if filters.dataset is not None:
        statement = statement.where(col(Evaluation.dataset_id) == filters.dataset)
    if filters.model is not None:
        is_model = or_(col(Evaluation.model_id) == filters.model, col(Evaluation.model) == filters.model)
        statement = statement.where(is_model)
    if filters.job is not None:
        statement = statement.where(col(Evaluation.job_id) == filters.job)
    if filters.run is not None:
        statement = statement.where(col(Evaluation.run_id) == filters.run)
    if filters.metric is not None:
        scored = select(col(EvaluationScore.evaluation_id)).where(
            col(EvaluationScore.metric) == filters.metric
        )
        statement = statement.where(col(Evaluation.id).in_(scored))
    return paginate_newest_first(session, statement, col(Evaluation.id), paging)


def get_evaluation(session: Session, evaluation_id: str) -> Evaluation:
    """Return the evaluation; raises EvaluationNotFound."""
    evaluation = session.get(Evaluation, evaluation_id)
    if evaluation is None:
        raise EvaluationNotFound(
            f"There is no evaluation {evaluation_id}.",
            hint="List the evaluations with GET /api/v1/evaluations.",
        )
    return evaluation


def load_evaluation(evaluation_id: str) -> Evaluation:
    """Return the evaluation, with the session closed again: reading a file must not keep one open."""
    with read_session() as session:
        return get_evaluation(session, evaluation_id)


def list_siblings(session: Session, evaluation: Evaluation) -> Sequence[Evaluation]:
    """Return the evaluations of the other models of the run."""
    statement = select(Evaluation).where(
        col(Evaluation.run_id) == evaluation.run_id, col(Evaluation.id) != evaluation.id
    )
    return session.scalars(statement.order_by(col(Evaluation.id))).all()


def view_evaluation(session: Session, evaluation: Evaluation) -> EvaluationView:
    """Build the view of an evaluation with the differences, warnings and details of its run."""
    run = session.get_one(Run, evaluation.run_id)
    siblings = [other.id for other in list_siblings(session, evaluation)]
    return evaluation_view(evaluation, _parse_result(run), siblings)


def _parse_result(run: Run) -> EvaluationResult | None:
    """Return the result; None for one that another version of the program has written."""
    try:
        return EvaluationResult.model_validate(run.result)
    except ValidationError:
        return None
