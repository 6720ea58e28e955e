"""From a job that a person means to post to a short job that looks for what would waste it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session

from app.http.errors import UnprocessableContent
from app.jobs import service
from app.jobs.resolve import ResolvedStage, resolve_stages
from app.jobs.schemas import JobCreate, PreflightOptions, PreflightView, SkippedStageView
from app.settings import Settings
from app.tables import Worker
from app.workers import service as workers
from trainers.configs import PrepareConfig, Queue, StageKind, parse_stage
from trainers.configs.references import ReferenceKind, find_references
from trainers.configs.training import TrainingConfig
from trainers.runtime.error_codes import ErrorCode


class NothingToJudge(UnprocessableContent):
    """No stage of the job can be judged before it runs."""

    code = ErrorCode.nothing_to_judge


@dataclass
class _Draft:
    """The stages of the preflight as they gather, and what of the job is known so far."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[SkippedStageView] = field(default_factory=list)
    bases: dict[str, Any] = field(default_factory=dict)
    """By the name of a stage that makes a model: the model that the chain of stages began with."""


def post(
    session: Session, settings: Settings, spec: JobCreate, options: PreflightOptions, created_by: str
) -> PreflightView:
    """Queue a `preflight` run for each training stage, after the `prepare` stages that make its data.

    A stage that goes on from an earlier one is judged on the model which that one began with: tokenizer,
    template and size are the same. Raises what `resolve` raises, and NothingToJudge.
    """
    draft = _Draft()
    living = workers.list_alive_workers(session, settings)
    for stage in resolve_stages(session, spec, settings):
        _add(draft, stage, living, options)
    if not any(stage["stage"] == StageKind.preflight for stage in draft.stages):
        raise NothingToJudge(
            "The job has no stage that can be judged before it runs. "
            + " ".join(f"{stage.stage}: {stage.reason}" for stage in draft.left_out),
            hint="Preflight is for jobs with the stages sft, dpo or grpo.",
        )
    judged = JobCreate(
        name=f"preflight of {spec.name}"[:200],
        labels=spec.labels,
        priority=100,
        queue=spec.queue,
        stages=[parse_stage(stage) for stage in draft.stages],
    )
    job, _ = service.create_job(session, settings, judged, created_by, None)
    return PreflightView(job=service.view_job(session, settings, job), left_out=draft.left_out)


def _add(draft: _Draft, stage: ResolvedStage, living: Sequence[Worker], options: PreflightOptions) -> None:
    """Put a stage into the draft, or say why it is left out."""
    values = stage.stored_config
    if stage.kind.produces_model:
        began_with = values.get("base") or values["model"]
        draft.bases[stage.name] = (
            draft.bases[began_with["stage"]] if isinstance(began_with, dict) else began_with
        )
    if not isinstance(stage.config, TrainingConfig | PrepareConfig):
        return
    missing = _missing(draft, stage.kind, values)
    if missing is not None:
        draft.left_out.append(SkippedStageView(stage=stage.name, reason=missing))
    elif isinstance(stage.config, PrepareConfig):
        draft.stages.append(values)
    else:
        draft.stages.append(
            {
                "stage": "preflight",
                "name": stage.name,
                "queue": stage.queue,
                "target": values | {"base": draft.bases[stage.name]},
                "hosts": _hosts(living, stage.queue, stage.kind),
                **options.model_dump(),
            }
        )


def _missing(draft: _Draft, kind: StageKind, values: dict[str, Any]) -> str | None:
    """What the stage needs and only the whole job will make."""
    made = {stage["name"] for stage in draft.stages}
    for reference in find_references(values):
        if isinstance(reference.value, str):
            continue
        stage = reference.value["stage"]
        if reference.kind is ReferenceKind.dataset and stage not in made:
            return f"Its data is made by stage {stage!r}, which cannot run before the job does."
        if reference.kind is ReferenceKind.model and kind is StageKind.prepare:
            return f"It needs the model of stage {stage!r}, which is not made yet."
    return None


def _hosts(living: Sequence[Worker], queue: Queue, stage: StageKind) -> list[dict[str, Any]]:
    """The memory of the workers that could take the stage."""
    hosts = []
    for worker in workers.filter_capable_workers(living, queue, stage):
        gpus = worker.hardware.get("gpus", [])
        if queue is Queue.cuda and gpus:
            memory = min(gpu["memory_bytes"] for gpu in gpus)
            hosts.append(
                {"worker": worker.name, "device": "cuda", "devices": len(gpus), "memory_bytes": memory}
            )
        elif queue is not Queue.cuda:
            hosts.append({"worker": worker.name, "memory_bytes": worker.hardware["memory_bytes"]})
    return hosts
