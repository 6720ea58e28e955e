"""Evaluations that are published with rows, as a worker does it: what the tests of evaluations share."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.storage.database import transaction
from app.storage.opening import get_store
from app.tables import Evaluation, EvaluationScore, Run, RunStatus
from trainers.configs import StageKind
from trainers.evaluation.results import EvaluationResult, ModelScores, PairedDifference, Score
from trainers.evaluation.row_index import INDEX, hash_keys
from trainers.reports.evaluation_folder import write_evaluation_folder

METRIC = "exact_match"
EXACT = "exact_match|version:1"


def make_result(
    values: Mapping[str, Sequence[float]], signature: str = EXACT, **fields: Any
) -> EvaluationResult:
    """Return a result with the mean of each model's values, by role."""
    models = [
        ModelScores(
            role=role,
            model=f"org/{role}",
            scores=[
                Score(
                    metric=METRIC,
                    value=sum(each) / len(each),
                    interval_95=(0.1, 0.9),
                    n=len(each),
                    signature=signature,
                )
            ],
            provenance={"seed": 42},
        )
        for role, each in values.items()
    ]
    n = len(next(iter(values.values())))
    return EvaluationResult(stage="evaluate", n=n, models=models, **fields)


def make_difference(role: str, other: str, difference: float) -> PairedDifference:
    return PairedDifference(
        metric=METRIC,
        role=role,
        other=other,
        n=4,
        difference=difference,
        interval_95=(-0.5, 0.5),
        p_value=0.6,
        p_adjusted=0.6,
        method="mcnemar",
        wins=1,
        losses=1,
        ties=2,
        verdict="undecided",
    )


def make_rows(
    values: Mapping[str, Sequence[float]], prompts: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return a row for each value; its question is its number unless `prompts` are given."""
    n = len(next(iter(values.values())))
    prompts = prompts or [f"question {number}" for number in range(1, n + 1)]
    return [
        {
            "row": number,
            "prompt": [{"role": "user", "content": prompt}],
            "reference": f"answer to {prompt}",
            "fields": {"source": "test"},
            "models": {
                role: {
                    "responses": [f"{role} says {number}"],
                    "values": {METRIC: each[number - 1]},
                    "details": {METRIC: {"reason": f"{role} {number}"}},
                }
                for role, each in values.items()
            },
        }
        for number, prompt in enumerate(prompts, 1)
    ]


def write_folder(run_dir: Path, result: EvaluationResult, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the folder of an evaluation, and return it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (run_dir / result.rows).write_text(text, encoding="utf-8")
    write_evaluation_folder(run_dir, result)
    return run_dir / "evaluation"


def store_evaluations(
    make_job: Callable[..., list[Run]],
    tmp_path: Path,
    values: Mapping[str, Sequence[float]],
    prompts: Sequence[str] | None = None,
    signature: str = EXACT,
    differences: Sequence[PairedDifference] = (),
    **columns: Any,
) -> list[Evaluation]:
    """Publish an evaluation of each role and insert its rows; return the evaluations."""
    result = make_result(values, signature, differences=list(differences))
    (run,) = make_job(RunStatus.succeeded, stage=StageKind.evaluate, attempt=1, result=result.model_dump())
    folder = write_folder(tmp_path / secrets.token_hex(4), result, make_rows(values, prompts))
    published = get_store().publish_folder(folder, f"evaluations/{run.id}/1")
    evaluations = [
        Evaluation(
            **{
                "job_id": run.job_id,
                "run_id": run.id,
                "role": model.role,
                "model": model.model,
                "rows_sha256": hash_keys(folder / INDEX),
                "metric": METRIC,
                "scores": [score.model_dump(mode="json") for score in model.scores],
                "provenance": model.provenance,
                "n": result.n,
                "artifact": published.key,
                "sha256": published.sha256,
                "size_bytes": published.size_bytes,
                **columns,
            }
        )
        for model in result.models
    ]
    with transaction() as session:
        session.add_all(evaluations)
        session.flush()
        session.add_all(
            EvaluationScore(
                evaluation_id=evaluation.id,
                metric=METRIC,
                value=model.scores[0].value,
                signature=signature,
                higher_is_better=True,
            )
            for evaluation, model in zip(evaluations, result.models, strict=True)
        )
    return evaluations
