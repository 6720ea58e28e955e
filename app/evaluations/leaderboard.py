"""The leaderboard of a dataset: the best evaluation of each model, ranked where scores can be compared."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from sqlalchemy import select
from sqlmodel import Session, col

from app.datasets.service import get_dataset
from app.evaluations.schemas import LeaderboardEntryView, LeaderboardView, RankingView
from app.tables import Evaluation, EvaluationScore
from trainers.evaluation.results import Score

# The newest evaluations of the dataset that are ranked.
MAX_RANKED = 1000

_Scored = tuple[Evaluation, EvaluationScore]


def view_leaderboard(session: Session, dataset_id: str, metric: str) -> LeaderboardView:
    """Rank the models by a metric; raises DatasetNotFound.

    Scores with another signature, or of other rows, are in a ranking of their own. A score of no rows, whose
    value is 0 by convention, is in none.
    """
    get_dataset(session, dataset_id)
    statement = (
        select(Evaluation, EvaluationScore)
        .join(EvaluationScore, col(EvaluationScore.evaluation_id) == col(Evaluation.id))
        .where(col(Evaluation.dataset_id) == dataset_id, col(EvaluationScore.metric) == metric)
        .order_by(col(Evaluation.id).desc())
        .limit(MAX_RANKED)
    )
    scored: list[_Scored] = [(row[0], row[1]) for row in session.execute(statement)]
    groups: dict[tuple[str, str, str | None], list[_Scored]] = {}
    for evaluation, score in scored:
        if _read_score(evaluation, score.metric).n == 0:
            continue
        key = score.signature, evaluation.rows_sha256, evaluation.dataset_sha256
        groups.setdefault(key, []).append((evaluation, score))
    rankings = [_rank(group) for group in groups.values()]
    rankings.sort(key=lambda ranking: -len(ranking.entries))
    return LeaderboardView(dataset_id=dataset_id, metric=metric, rankings=rankings)


def _rank(group: Sequence[_Scored]) -> RankingView:
    first, score = group[0]
    sign = -1 if score.higher_is_better else 1
    # The best of each model; of equal ones the newest, which comes first.
    best: dict[str, _Scored] = {}
    for evaluation, own in sorted(group, key=lambda each: sign * each[1].value):
        best.setdefault(evaluation.model_id or evaluation.model, (evaluation, own))
    return RankingView(
        signature=score.signature,
        rows_sha256=first.rows_sha256,
        dataset_sha256=first.dataset_sha256,
        higher_is_better=score.higher_is_better,
        entries=list(_number(best.values())),
    )


def _number(ordered: Iterable[_Scored]) -> Iterable[LeaderboardEntryView]:
    """Yield the entries with their ranks: 1, 1, 3 after two equal values."""
    position = 1
    for _, equal in groupby(ordered, key=lambda each: each[1].value):
        entries = list(equal)
        yield from (_view_entry(position, *each) for each in entries)
        position += len(entries)


def _view_entry(rank: int, evaluation: Evaluation, score: EvaluationScore) -> LeaderboardEntryView:
    full = _read_score(evaluation, score.metric)
    return LeaderboardEntryView(
        rank=rank,
        evaluation_id=evaluation.id,
        model=evaluation.model,
        model_id=evaluation.model_id,
        value=score.value,
        interval_95=full.interval_95,
        n=full.n,
        created_at=evaluation.created_at,
    )


def _read_score(evaluation: Evaluation, metric: str) -> Score:
    return next(Score.model_validate(each) for each in evaluation.scores if each["metric"] == metric)
