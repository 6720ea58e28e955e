"""Batches and fine-tuning jobs in several states, and many of both, for tests of the pages."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from app.files.service import publish_content
from app.storage.database import insert_rows, transaction
from app.tables import (
    Batch,
    Event,
    EventType,
    File,
    FilePurpose,
    FineTuningCheckpoint,
    FineTuningJob,
    Job,
    Run,
    RunStatus,
)
from app.tables.base import new_id, new_row, utc_now
from trainers.configs import BatchEndpoint, Queue, StageKind, parse_stage

FAULTS = [
    {
        "code": "invalid_json_line",
        "line": 3,
        "message": "This line is not a JSON object: expecting ',' delimiter at column 118.",
        "param": None,
    },
    {
        "code": "duplicate_custom_id",
        "line": 1207,
        "message": "The custom_id 'row-12' is that of line 12 as well; every request needs its own.",
        "param": "custom_id",
    },
]
CHAT = BatchEndpoint.chat_completions
SFT = {"stage": "sft", "base": "starter", "dataset": "dataset_of_news"}
METHOD: dict[str, Any] = {
    "type": "supervised",
    "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.8}},
}
EXPLANATION = (
    "n_epochs 3 (48,211 rows), batch_size 16, learning_rate_multiplier 1.8: the learning rate is 0.00018."
)
ERROR = {
    "code": "out_of_memory",
    "message": "The GPU ran out of memory at step 42: 79.1 GiB of 79.6 GiB were in use.",
    "hint": "Set a batch_size of 8.",
}


def add_shown_batches(folder: Path) -> dict[str, str]:
    """Insert a batch in each state, and return their ids by state."""
    at = utc_now() - timedelta(hours=3)
    lines = [json.dumps({"custom_id": f"row-{number}"}) for number in range(3)]
    source = add_file(folder, "translate-news.jsonl", FilePurpose.batch, "\n".join(lines))
    output = add_file(folder, "output.jsonl", FilePurpose.batch_output, '{"custom_id": "row-0"}\n')
    errors = add_file(folder, "errors.jsonl", FilePurpose.batch_output, '{"custom_id": "row-2"}\n')
    usage = {"input_tokens": 812_400, "cached_tokens": 120_000, "output_tokens": 402_118}
    counted = {"model": "ko-en-news", "total": 50_000, "in_progress_at": at, "usage": usage}
    done = {**counted, "completed": 49_872, "failed": 128, "completed_at": at + timedelta(minutes=41)}
    files = {"output_file_id": output, "error_file_id": errors}
    added: list[tuple[str, RunStatus, dict[str, Any]]] = [
        ("cancelled", RunStatus.cancelled, {"cancelled_at": at}),
        ("completed", RunStatus.succeeded, {**done, **files, "client_metadata": {"team": "news"}}),
        ("failed", RunStatus.failed, {"errors": FAULTS, "failed_at": at}),
        ("running", RunStatus.running, {**counted, "completed": 12_041, "failed": 3}),
        ("waiting", RunStatus.queued, {}),
    ]
    return {name: add_batch(status, source, **values) for name, status, values in added}


def add_batch(status: RunStatus, input_file_id: str = "file-gone", **values: Any) -> str:
    """Insert a batch with its job and a run of a status, and return its id."""
    batch = Batch(endpoint=CHAT, input_file_id=input_file_id, completion_window="24h", **values)
    batch.expires_at = batch.created_at + timedelta(hours=24)
    config = parse_stage({"stage": "batch", "batch": batch.id, "endpoint": CHAT})
    job, run = _make_job(batch.id.replace("_", "-"), StageKind.batch, config.model_dump(mode="json"), status)
    with transaction() as session:
        for row in (job, run):
            session.add(row)
            session.flush()
        batch.job_id, batch.run_id = job.id, run.id
        session.add(batch)
    return batch.id


def add_shown_fine_tuning_jobs(folder: Path) -> dict[str, str]:
    """Insert a fine-tuning job in each of several states, and return their ids by state."""
    training = add_file(folder, "news-train.jsonl", FilePurpose.fine_tune, '{"messages": []}\n')
    results = add_file(folder, "step_metrics.csv", FilePurpose.fine_tune_results, "step,train_loss\n")
    ids = {
        "failed": add_fine_tuning_job(RunStatus.failed, "failed", training_file=training, error=ERROR),
        "paused": add_fine_tuning_job(RunStatus.paused, "paused", training_file=training, step=120),
        "succeeded": add_fine_tuning_job(
            RunStatus.succeeded, "news", training_file=training, result_file_id=results, step=400
        ),
        "running": add_fine_tuning_job(RunStatus.running, "summaries", training_file=training, step=180),
    }
    with transaction() as session:
        for step in (200, 400):
            name = f"{session.get_one(FineTuningJob, ids['succeeded']).fine_tuned_model}:ckpt-step-{step}"
            metrics = {"step": step, "train_loss": 0.8341, "valid_loss": 0.8412}
            session.add(
                FineTuningCheckpoint(
                    fine_tuning_job_id=ids["succeeded"],
                    step=step,
                    name=name,
                    model_id=new_id("model"),
                    metrics=metrics,
                )
            )
    return ids


def add_fine_tuning_job(status: RunStatus, suffix: str = "", **values: Any) -> str:
    """Insert a fine-tuning job with a run of a status and some events, and return its id."""
    step, error = values.pop("step", 0), values.pop("error", None)
    config = parse_stage(SFT).model_dump(mode="json")
    job, run = _make_job(suffix or "ft", StageKind.sft, config, status)
    run.step, run.total_steps, run.error, run.event_seq = step, 400, error, 6
    tuning = FineTuningJob(
        job_id=job.id,
        model="starter",
        base="starter",
        base_name="starter",
        seed=1_760_512_345,
        method=METHOD,
        explanation=EXPLANATION,
        client_metadata={"team": "news"},
        engine={},
        organization="acme",
        fine_tuned_model="",
        **{"training_file": "file-gone", **values},
    )
    tuning.fine_tuned_model = f"ft:starter:acme:{suffix}:{tuning.id[-8:]}"
    events: list[tuple[EventType, int | None, dict[str, Any]]] = [
        (EventType.status, None, {"status": "queued"}),
        (EventType.status, None, {"status": "running"}),
        *((EventType.metrics, number, {"loss": 1.2 - number / 1000}) for number in (10, 20, 30)),
        (EventType.checkpoint, 30, {}),
    ]
    with transaction() as session:
        for row in (job, run, tuning):
            session.add(row)
            session.flush()
        for seq, (kind, at_step, data) in enumerate(events, 1):
            session.add(Event(run_id=run.id, seq=seq, attempt=1, type=kind, step=at_step, data=data))
    return tuning.id


def add_many(count: int) -> None:
    """Insert finished batches and fine-tuning jobs, each with a job and a run of its own."""
    jobs, runs, batches, tunings = list[Job](), list[Run](), list[Batch](), list[FineTuningJob]()
    config = parse_stage(SFT).model_dump(mode="json")
    for number in range(count):
        for kind in (StageKind.batch, StageKind.sft):
            job, run = _make_job(f"many-{number}", kind, config, RunStatus.succeeded)
            jobs.append(job)
            runs.append(run)
            common = {"created_at": job.created_at, "job_id": job.id}
            if kind is StageKind.batch:
                batches.append(
                    new_row(
                        Batch,
                        **common,
                        run_id=run.id,
                        endpoint=CHAT,
                        input_file_id="file-gone",
                        completion_window="24h",
                        total=10,
                        completed=10,
                        completed_at=job.created_at,
                    )
                )
            else:
                tuning = new_row(
                    FineTuningJob,
                    **common,
                    **dict.fromkeys(("model", "base", "base_name", "organization", "training_file"), "x"),
                    seed=1,
                    method=METHOD,
                    explanation="",
                    engine={},
                    fine_tuned_model=f"ft:x:many-{number}",
                )
                tunings.append(tuning)
    with transaction() as session:
        for table, rows in ((Job, jobs), (Run, runs), (Batch, batches), (FineTuningJob, tunings)):
            insert_rows(session, table, [row.model_dump() for row in rows])


def add_file(folder: Path, name: str, purpose: FilePurpose, content: str) -> str:
    """Insert a file with its bytes, and return its id."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    artifact, sha256 = publish_content(path)
    with transaction() as session:
        file = File(
            filename=name,
            purpose=purpose,
            size_bytes=path.stat().st_size,
            artifact=artifact,
            sha256=sha256,
        )
        session.add(file)
        session.flush()
        return file.id


def _make_job(name: str, stage: StageKind, config: dict[str, Any], status: RunStatus) -> tuple[Job, Run]:
    at = utc_now() - timedelta(hours=3)
    job = Job(name=name, spec={"name": name, "stages": [{"stage": stage.value}]}, created_at=at)
    run = new_row(
        Run,
        job_id=job.id,
        position=0,
        name=stage.value,
        full_name=f"{name}-{stage.value}",
        stage=stage,
        queue=Queue.cpu,
        config=config,
        status=status,
        created_at=at,
        attempt=0 if status is RunStatus.queued else 1,
        started_at=None if status is RunStatus.queued else at,
        finished_at=at + timedelta(minutes=41) if status.finished else None,
    )
    return job, run
