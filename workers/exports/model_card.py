"""The model card of an exported model: its base, data, settings and scores, from the rows of its lineage."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError
from sqlalchemy import String, cast, or_, select
from sqlmodel import Session, col

from app.storage.database import read_session
from app.tables import Dataset, Model, Run, RunStatus
from trainers.configs import StageKind
from trainers.evaluation.results import EvaluationResult, Interval

MAX_ANCESTORS = 20
SCORE_HEADER = ["dataset", "metric", "score", "n", "95 % interval", "signature"]
# Fields of a stage that name models, datasets or places of this installation, or do not change the weights.
LEFT_OUT = frozenset(
    {"stage", "name", "queue", "preset", "base", "model", "teacher", "dataset", "validation_dataset"}
    | {"held_out", "limits", "devices", "parallelism", "preflight"}
    | {"save_every_steps", "save_every_epoch", "log_every_steps"}
)


@dataclass(frozen=True)
class _Ancestor:
    """A model of the lineage, with the run and the dataset that it comes from, as far as they exist."""

    model: Model
    run: Run | None
    dataset: Dataset | None


def render_card(name: str, base: str, model_id: str | None, checks: dict[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        name: The title.
        base: Location of the base weights.
        model_id: The model of the registry that was exported.
        checks: The comparisons of the exported files, by file.
    """
    with read_session() as session:
        lineage = _load_lineage(session, model_id)
        scores = _load_scores(session, model_id) if model_id else []
    parts = [f"# {name}", f"Base: `{_public_name(base)}`. Trained with Tunesmith."]
    trained = [ancestor for ancestor in lineage if ancestor.run is not None and ancestor.run.stage.trains]
    if trained:
        header = ["stage", "dataset", "rows", "SHA-256", "settings"]
        parts += ["## Training", _table(header, map(_row, trained))]
    if scores:
        parts += ["## Scores", _table(SCORE_HEADER, scores)]
    if checks:
        header = ["file", "mean difference", "largest", "tokens"]
        rows = [[name, check["mean"], check["max"], check["tokens"]] for name, check in checks.items()]
        intro = "Differences of log-probabilities between each file and the trained model:"
        parts += ["## Formats", intro, _table(header, rows)]
    return "\n\n".join(parts) + "\n"


def _load_lineage(session: Session, model_id: str | None) -> list[_Ancestor]:
    """Return the model and its ancestors in the registry, the newest first."""
    lineage: list[_Ancestor] = []
    while model_id is not None and len(lineage) < MAX_ANCESTORS:
        model = session.get(Model, model_id)
        if model is None:
            break
        run = session.get(Run, model.run_id) if model.run_id else None
        dataset = session.get(Dataset, model.dataset_id) if model.dataset_id else None
        lineage.append(_Ancestor(model, run, dataset))
        model_id = model.parent_id
    return lineage


def _load_scores(session: Session, model_id: str) -> list[list[Any]]:
    """Return a row for each evaluation of the model, named by its id or by a stage of the same job."""
    jobs = select(col(Run.job_id)).where(col(Run.model_id) == model_id)
    names_it = cast(Run.config, String).contains(model_id, autoescape=True)
    evaluations = select(Run).where(
        col(Run.stage) == StageKind.evaluate,
        col(Run.status) == RunStatus.succeeded,
        or_(names_it, col(Run.job_id).in_(jobs)),
    )
    rows = []
    for run in session.scalars(evaluations.order_by(col(Run.id))):
        if _find_evaluated(session, run) == model_id:
            rows += _score_rows(session, run)
    return rows


def _find_evaluated(session: Session, run: Run) -> str | None:
    """Return the id of the registry model that an evaluation has scored."""
    model = run.config.get("model")
    if not isinstance(model, dict):
        return model
    by_name = select(col(Run.model_id)).where(
        col(Run.job_id) == run.job_id, col(Run.name) == model.get("stage")
    )
    return session.scalar(by_name)


def _score_rows(session: Session, run: Run) -> list[list[Any]]:
    """Return a row for each metric of an evaluation."""
    try:
        result = EvaluationResult.model_validate(run.result)
    except ValidationError:
        # The run is of an older version.
        return []
    dataset = run.config.get("dataset")
    row = session.get(Dataset, dataset) if isinstance(dataset, str) else None
    name = f"{row.name} (`{row.sha256[:12]}`)" if row else ""
    return [
        [
            name,
            score.metric,
            f"{score.value:.4f}",
            score.n,
            _interval(score.interval_95),
            f"`{score.signature}`",
        ]
        for score in result.models[0].scores
    ]


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} – {interval[1]:.4f}"


def _row(ancestor: _Ancestor) -> list[Any]:
    run, dataset = ancestor.run, ancestor.dataset
    assert run is not None
    settings = {key: value for key, value in run.config.items() if key not in LEFT_OUT and value is not None}
    data = [dataset.name, dataset.row_count, f"`{dataset.sha256}`"] if dataset else ["", "", ""]
    return [run.stage, *data, f"`{json.dumps(settings, ensure_ascii=False)}`"]


def _public_name(base: str) -> str:
    """Return a hub id as it is, and of a folder only its name: its path belongs to this installation."""
    return PurePosixPath(base).name if base.startswith("/") else base


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
