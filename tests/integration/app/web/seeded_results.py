"""Checkpoints, evaluations, comparisons and samples, for tests and screenshots of the pages of results."""

import random
import secrets
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from app.storage.database import insert_rows, transaction
from app.storage.opening import get_store
from app.tables import (
    Checkpoint,
    Comparison,
    Evaluation,
    EvaluationScore,
    Event,
    EventType,
    Job,
    Model,
    ModelKind,
    Run,
    RunStatus,
)
from app.tables.base import new_row, utc_now
from tests.integration.app.stored_evaluations import EXACT, METRIC, make_result, make_rows, write_folder
from trainers.configs import Queue, StageKind
from trainers.evaluation.results import EvaluationResult, PairedDifference, Score
from trainers.evaluation.row_index import INDEX, hash_keys

GATE_MESSAGE = "exact_match of model is 0.734 with n = 500; it must be at least 0.7."


def add_checkpoints(run: Run, count: int, *, every: int = 50, resumable: bool = True) -> list[Checkpoint]:
    """Insert checkpoints of a run, oldest first, with a validation loss at each of their steps."""
    begun = utc_now() - timedelta(minutes=count)
    rows: list[Checkpoint] = [
        new_row(
            Checkpoint,
            run_id=run.id,
            attempt=1,
            step=number * every,
            artifact=f"checkpoints/{run.id}/{number}",
            sha256=secrets.token_hex(32),
            size_bytes=413 * 2**20,
            resumable=resumable,
            created_at=begun + timedelta(minutes=number),
        )
        for number in range(1, count + 1)
    ]
    with transaction() as session:
        insert_rows(session, Checkpoint, [row.model_dump() for row in rows])
        stored = session.get_one(Run, run.id)
        for seq, row in enumerate(rows, stored.event_seq + 1):
            loss = 0.8 + abs(row.step - 0.7 * count * every) / (count * every)
            values = {"validation_loss": loss, "loss": loss - 0.05}
            session.add(
                Event(run_id=run.id, seq=seq, attempt=1, type=EventType.metrics, step=row.step, data=values)
            )
        stored.event_seq += count
        stored.step = count * every
    return rows


def add_samples(run: Run, count: int) -> None:
    """Insert the samples of as many steps of a run."""
    with transaction() as session:
        stored = session.get_one(Run, run.id)
        for number in range(count):
            samples = [
                {
                    "prompt": "한 상자에 사과가 12개 있습니다. 세 상자에는 모두 몇 개가 있습니까?",
                    "completion": f"Three boxes of 12 apples: 12 × 3 = {36 - share}.\n#### {36 - share}",
                    "reference": "36",
                    "rewards": {"exact": float(not share), "format": 1.0},
                    "total": 1.2 - bool(share),
                }
                for share in range(2)
            ]
            session.add(
                Event(
                    run_id=run.id,
                    seq=stored.event_seq + number + 1,
                    attempt=1,
                    type=EventType.samples,
                    step=number * 10,
                    data={"samples": samples},
                )
            )
        stored.event_seq += count


def add_model(run: Run) -> str:
    """Insert the model that a run has produced, and return its id."""
    model = Model(
        name=run.full_name or run.name,
        kind=ModelKind.adapter,
        base="starter",
        run_id=run.id,
        artifact=f"models/{run.id}",
        sha256=secrets.token_hex(32),
        size_bytes=1,
    )
    with transaction() as session:
        session.add(model)
        session.flush()
        session.get_one(Run, run.id).model_id = model.id
    return model.id


def add_evaluations(folder: Path, n_rows: int, *, name: str = "ko-en-news") -> list[Evaluation]:
    """Insert the evaluations of a model and its base on the same rows, in a job with a gate that is met."""
    values = {"ko-en-tuned": _draw(n_rows, 0.73, 1), "ko-en-base": _draw(n_rows, 0.58, 2)}
    by_role = {"model": values["ko-en-tuned"], "baseline": values["ko-en-base"]}
    result = _make_result(by_role)
    rows = make_rows(by_role, [f"오늘 서울의 기온은 {row}도까지 오르겠습니다." for row in range(n_rows)])
    path = write_folder(folder / secrets.token_hex(4), result, rows)
    job = Job(name=f"{name}-evaluation")
    run = _new_run(job, 0, StageKind.evaluate, result.model_dump(mode="json"))
    gate = _new_run(job, 1, StageKind.gate, {"stage": "gate", "met": True, "message": GATE_MESSAGE})
    published = get_store().publish_folder(path, f"evaluations/{run.id}/1")
    common: dict[str, Any] = {
        "job_id": job.id,
        "run_id": run.id,
        "rows_sha256": hash_keys(path / INDEX),
        "metric": METRIC,
    }
    stored: dict[str, Any] = {
        "artifact": published.key,
        "sha256": published.sha256,
        "size_bytes": published.size_bytes,
    }
    evaluations = [
        Evaluation(
            **common,
            **stored,
            role=model.role,
            model=model_name,
            scores=[score.model_dump(mode="json") for score in model.scores],
            provenance={"seed": 42, "engine": "hf", "template_sha256": "9f2c"},
            n=n_rows,
        )
        for model, model_name in zip(result.models, values, strict=True)
    ]
    with transaction() as session:
        session.add(job)
        session.flush()
        session.add_all([run, gate])
        session.flush()
        session.add_all(evaluations)
        session.flush()
        session.add_all(_new_score(evaluation) for evaluation in evaluations)
    return evaluations


def add_many_evaluations(like: Evaluation, count: int) -> None:
    """Insert evaluations with the scores and the rows of another one."""
    job = Job(name="sweep")
    run = _new_run(job, 0, StageKind.evaluate, {})
    common = {**like.model_dump(exclude={"id", "role"}), "job_id": job.id, "run_id": run.id}
    rows = [Evaluation(**common, role=f"model-{number:04d}") for number in range(count)]
    with transaction() as session:
        session.add(job)
        session.flush()
        session.add(run)
        session.flush()
        session.add_all(rows)
        session.flush()
        session.add_all(_new_score(row) for row in rows)


def add_comparison(evaluations: Sequence[Evaluation]) -> Comparison:
    """Insert the comparison of two evaluations, in a job with a gate that is met."""
    values = {each.role: [each.scores[0]["value"]] for each in evaluations}
    result = _make_result(values)
    for model, evaluation in zip(result.models, evaluations, strict=True):
        model.model = evaluation.model
    job = Job(name="comparison")
    run = _new_run(job, 0, StageKind.compare, {})
    gate = _new_run(job, 1, StageKind.gate, {"stage": "gate", "met": True, "message": GATE_MESSAGE})
    first = evaluations[0]
    comparison = Comparison(
        job_id=job.id,
        run_id=run.id,
        evaluations=[each.id for each in evaluations],
        n=first.n,
        result=result.model_dump(mode="json"),
        artifact=first.artifact,
        sha256=first.sha256,
        size_bytes=first.size_bytes,
    )
    with transaction() as session:
        session.add(job)
        session.flush()
        session.add_all([run, gate])
        session.flush()
        session.add(comparison)
    return comparison


def add_results(runs: dict[str, list[Run]], folder: Path) -> dict[str, str]:
    """Insert what the pages of results show, and return ids by name."""
    add_checkpoints(runs["ko-en-news"][0], 1000, every=10)
    model, base = add_evaluations(folder, 500)
    add_many_evaluations(base, 1000)
    add_comparison([model, base])
    add_samples(runs["support-chat-v3"][0], 40)
    return {"evaluation": model.id, "baseline": base.id}


def _make_result(values: dict[str, list[float]]) -> EvaluationResult:
    n_rows = len(values["model"])
    result = make_result(values)
    for model in result.models:
        score = model.scores[0]
        score.interval_95 = (score.value - 0.04, score.value + 0.04)
        chrf: dict[str, Any] = {
            "metric": "chrf",
            "value": 40 + 30 * score.value,
            "interval_95": None,
            "n": n_rows,
        }
        model.scores.append(Score(**chrf, signature="chrf|version:2"))
    result.differences = [
        _make_difference(METRIC, result, (0.10, 0.21)),
        _make_difference("chrf", result, (-0.4, 9.1)),
    ]
    result.warnings = ["7 of 500 rows have the same prompt as a row of the training data."]
    result.details = {"slices": [_make_slice("length=short", 0.8), _make_slice("length=long", 0.6)]}
    return result


def _make_difference(
    metric: str, result: EvaluationResult, interval: tuple[float, float]
) -> PairedDifference:
    is_decided = interval[0] > 0
    return PairedDifference(
        metric=metric,
        role="model",
        other="baseline",
        n=result.n,
        difference=sum(interval) / 2,
        interval_95=interval,
        p_value=0.0004 if is_decided else 0.07,
        p_adjusted=0.0008 if is_decided else 0.07,
        method="mcnemar",
        wins=138,
        losses=62,
        ties=abs(result.n - 200),
        verdict="better" if is_decided else "undecided",
    )


def _make_slice(name: str, value: float) -> dict[str, Any]:
    def score(value: float) -> dict[str, Any]:
        return {"metric": METRIC, "value": value, "interval_95": (value - 0.07, value + 0.07), "n": 250}

    scores = {"model": [score(value)], "baseline": [score(value - 0.1)]}
    return {"slice": name, "n": 250, "scores": scores, "differences": []}


def _draw(count: int, share: float, seed: int) -> list[float]:
    source = random.Random(seed)
    return [float(source.random() < share) for _ in range(count)]


def _new_score(evaluation: Evaluation) -> EvaluationScore:
    value = evaluation.scores[0]["value"]
    return EvaluationScore(
        evaluation_id=evaluation.id, metric=METRIC, value=value, signature=EXACT, higher_is_better=True
    )


def _new_run(job: Job, position: int, stage: StageKind, result: dict[str, Any]) -> Run:
    run: Run = new_row(
        Run,
        job_id=job.id,
        position=position,
        name=stage.value,
        full_name=f"{job.name}-{stage}",
        stage=stage,
        queue=Queue.cpu,
        config={},
        status=RunStatus.succeeded,
        attempt=1,
        result=result,
        started_at=utc_now() - timedelta(minutes=9),
        finished_at=utc_now() - timedelta(minutes=2),
    )
    return run
