"""Jobs in every state, many jobs, and a run with many metrics, for tests and screenshots of the pages."""

import math
import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from app.runs.curves.main_metric import extend_summary
from app.storage.database import insert_rows, transaction
from app.tables import Event, EventType, Job, JobLabel, Run, RunStatus, Worker
from app.tables.base import new_id, new_row, utc_now
from trainers.configs import Queue, StageKind, parse_stage

LOSS = {
    "lowest": 0.8123,
    "lowest_step": 180,
    "highest": 2.91,
    "highest_step": 1,
    "last": 0.8341,
    "last_step": 180,
}
VALIDATION = LOSS | {"lowest": 0.7994, "lowest_step": 150, "last": 0.8412}
SCORES: dict[str, Any] = {
    "stage": "evaluate",
    "n": 240,
    "models": [{"role": "model", "model": "ko-en", "scores": [{"metric": "chrf", "value": 61.42, "n": 240}]}],
}
GATE_ERROR = {
    "code": "out_of_memory",
    "message": "The GPU ran out of memory at step 42: 79.1 GiB of 79.6 GiB were in use, and a micro-batch of "
    "16 rows needs 1.4 GiB more.",
    "hint": "Set micro_batch_size to 8, or max_length to 2048; the effective batch stays the same.",
}
S = RunStatus
# The name of a job, and the statuses of its stages sft, evaluate and deploy.
SHOWN: Sequence[tuple[str, tuple[RunStatus, ...]]] = (
    ("ko-en-news", (S.running, S.queued, S.queued)),
    ("maths-grpo-nightly", (S.succeeded, S.running, S.queued)),
    ("support-chat-v3", (S.failed, S.cancelled, S.cancelled)),
    ("ko-en-news-lr-sweep", (S.succeeded, S.succeeded, S.succeeded)),
    ("legal-summaries", (S.queued, S.queued)),
    ("support-chat-v2", (S.paused, S.paused)),
    ("tokenizer-check", (S.cancelled,)),
    ("medical-qa", (S.pausing, S.paused)),
    ("abandoned", (S.cancelling, S.cancelled)),
)


def add_shown_jobs() -> dict[str, list[Run]]:
    """Insert a job in each state, newest first, and return their runs by the job's name."""
    added = {}
    for age, (name, statuses) in reversed(list(enumerate(SHOWN))):
        started = utc_now() - timedelta(minutes=7 + age * 53)
        labels = {"team": "translation" if name.startswith("ko-") else "assistants", "owner": "minji"}
        added[name] = _add_job(name, statuses, started, labels)
    return added


def add_many_jobs(count: int) -> list[str]:
    """Insert jobs of three successful stages each, and return their ids, oldest first."""
    at = utc_now() - timedelta(days=30)
    jobs = [
        new_row(
            Job, name=f"nightly-{n:04d}", labels={"team": f"t{n % 7}"}, created_at=at + timedelta(minutes=n)
        )
        for n in range(count)
    ]
    runs = [
        _new_run(job, position, S.succeeded, at + timedelta(minutes=n))
        for n, job in enumerate(jobs)
        for position in range(3)
    ]
    with transaction() as session:
        insert_rows(session, Job, [job.model_dump() for job in jobs])
        labels = [{"key": "team", "value": job.labels["team"], "job_id": job.id} for job in jobs]
        insert_rows(session, JobLabel, labels)
        insert_rows(session, Run, [run.model_dump() for run in runs])
    return [job.id for job in jobs]


def add_metrics(run: Run, count: int, *, from_step: int = 0) -> None:
    """Insert metrics and some log lines as events of a run, and update its progress."""
    rows = [event for index in range(count) for event in _make_events(run, from_step + index, count)]
    with transaction() as session:
        stored = session.get_one(Run, run.id)
        for number, row in enumerate(rows, stored.event_seq + 1):
            row["seq"] = number
        insert_rows(session, Event, rows)
        stored.event_seq = run.event_seq = stored.event_seq + len(rows)
        stored.step, stored.total_steps = from_step + count, max(stored.total_steps or 0, 2 * count)
        for row in rows:
            if row["type"] is EventType.metrics:
                stored.metrics = extend_summary(stored.metrics or {}, row["data"], row["step"])


def _make_events(run: Run, step: int, count: int) -> Iterator[dict[str, Any]]:
    noise = random.Random(step).gauss(0, 0.06)
    at = (run.started_at or run.created_at) + timedelta(seconds=step * 0.6)
    common = {"run_id": run.id, "attempt": 1, "step": step, "created_at": at}
    loss = 0.7 + 2.2 * math.exp(-step / (count / 5)) + noise
    values = {
        "loss": loss,
        "grad_norm": abs(0.9 + 6 * noise),
        "learning_rate": 2e-4 * min(1, step / (count / 20 + 1)) * (1 - step / (count * 1.2)),
        "epoch": 3 * step / count,
        "tokens": step * 16_384.0 + 40_000 * math.sin(step / 40),
        "peak_gpu_bytes": 41.2 * 2**30,
    }
    yield {**common, "type": EventType.metrics, "data": values}
    if step % max(1, count // 20) == 0:
        yield {**common, "type": EventType.metrics, "data": {"validation_loss": loss + 0.06 - noise}}
        line = f"step {step} of {count}, loss {loss:.4f}"
        yield {**common, "type": EventType.log, "step": None, "data": {"lines": [line]}}


def _add_job(
    name: str, statuses: Sequence[RunStatus], started: datetime, labels: dict[str, str]
) -> list[Run]:
    job = Job(name=name, labels=labels, created_at=started - timedelta(minutes=2))
    spec = {
        "name": name,
        "labels": labels,
        "stages": [{"stage": "sft", "base": "starter", "dataset": "train"}],
    }
    job.spec = spec
    runs = [_new_run(job, position, status, started) for position, status in enumerate(statuses)]
    with transaction() as session:
        worker = _find_worker(session)
        session.add(job)
        session.flush()
        session.add_all(JobLabel(job_id=job.id, key=key, value=value) for key, value in labels.items())
        for run in runs:
            run.worker_id = worker if run.status.held else None
        session.add_all(runs)
        session.flush()
        session.add_all(
            Event(run_id=run.id, seq=1, attempt=0, type=EventType.status, data={"status": "queued"})
            for run in runs
        )
    return runs


def _find_worker(session: Any) -> str:
    worker = session.get(Worker, "worker_seed")
    if worker is None:
        worker = Worker(id="worker_seed", name="gpu-1", host="gpu-1.lab", pid=1, queues=[Queue.cuda])
        worker.stages, worker.last_seen_at = [stage.value for stage in StageKind], utc_now()
        session.add(worker)
        session.flush()
    return str(worker.id)


def _new_run(job: Job, position: int, status: RunStatus, started: datetime) -> Run:
    stage = (StageKind.sft, StageKind.evaluate, StageKind.deploy)[position]
    config = parse_stage(_CONFIGS[stage]).model_dump(mode="json")
    has_started = status not in (S.queued, S.skipped) and not (position and status in (S.paused, S.cancelled))
    begun = started + timedelta(minutes=20 * position) if has_started else None
    run: Run = new_row(
        Run,
        id=new_id("run"),
        job_id=job.id,
        position=position,
        name=stage.value,
        full_name=f"{job.name}-{stage}",
        stage=stage,
        queue=Queue.cuda if stage is StageKind.sft else Queue.cpu,
        config=config,
        status=status,
        attempt=1 if has_started else 0,
        event_seq=1,
        unmet_needs=int(position > 0),
        created_at=job.created_at,
        started_at=begun,
    )
    if stage is StageKind.sft and has_started:
        run.step, run.total_steps, run.seconds_per_step = 180, 600, 2.4
        run.metrics = {"loss": LOSS, "validation_loss": VALIDATION}
    if status is S.failed:
        run.error = GATE_ERROR
    if status.finished and begun is not None:
        run.finished_at = begun + timedelta(minutes=18, seconds=12)
    if status is S.succeeded and stage is StageKind.evaluate:
        run.result = SCORES
    return run


_CONFIGS: dict[StageKind, dict[str, Any]] = {
    StageKind.sft: {"stage": "sft", "base": "starter", "dataset": "train"},
    StageKind.evaluate: {"stage": "evaluate", "model": "starter", "dataset": "test", "metrics": ["chrf"]},
    StageKind.deploy: {"stage": "deploy", "model": "starter", "deployment": "mine"},
}
