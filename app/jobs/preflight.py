"""Preflight jobs: short runs that check the training stages of another job before it is submitted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlmodel import Session

from app.http.errors import UnprocessableContent
from app.jobs import service
from app.jobs.resolve import ResolvedStage, resolve_stages
from app.jobs.schemas import JobCreate, PreflightOptions, SkippedStageView
from app.models.templates import check_stage_templates
from app.settings import Settings
from app.tables import Job, Worker
from app.workers import service as workers
from trainers.configs import (
    DistillConfig,
    ExportConfig,
    HostMemory,
    ImportConfig,
    MergeConfig,
    ModelRef,
    PreflightConfig,
    PrepareConfig,
    Queue,
    StageDataset,
    StageKind,
    StageOutput,
)
from trainers.configs.references import find_references
from trainers.configs.training import TrainingConfig
from trainers.runtime.error_codes import ErrorCode


class NothingToCheck(UnprocessableContent):
    """No stage of the job can be checked before it runs."""

    code = ErrorCode.nothing_to_check


@dataclass
class _Draft:
    """The stages of the preflight job so far, and the stages that are skipped."""

    stages: list[PrepareConfig | PreflightConfig] = field(default_factory=list)
    skipped: list[SkippedStageView] = field(default_factory=list)
    bases: dict[str, ModelRef] = field(default_factory=dict)
    """For each stage that produces a model: the model that its chain of stages started from."""


def create_preflight(
    session: Session, settings: Settings, spec: JobCreate, options: PreflightOptions, created_by: str
) -> tuple[Job, list[SkippedStageView]]:
    """Queue a `preflight` run for each training stage, after the `prepare` stages that produce its data.

    A stage that continues from an earlier one is checked on the model which that one started from: its
    tokenizer, template and size are the same. Returns the job and the skipped stages. Raises the errors of
    `resolve_stages`, TemplateUnusable and NothingToCheck.
    """
    check_stage_templates(spec.stages)
    draft = _Draft()
    alive_workers = workers.list_alive_workers(session, settings)
    for stage in resolve_stages(session, spec, settings):
        _add(draft, stage, alive_workers, options)
    if not any(isinstance(stage, PreflightConfig) for stage in draft.stages):
        reasons = "".join(f" {skipped.stage}: {skipped.reason}" for skipped in draft.skipped)
        raise NothingToCheck(
            f"The job has no stage that can be checked before it runs.{reasons}",
            hint=f"Preflight checks the stages {', '.join(kind for kind in StageKind if kind.trains)}.",
        )
    preflight_spec = JobCreate(
        name=f"preflight of {spec.name}"[:200],
        labels=spec.labels,
        priority=100,
        queue=spec.queue,
        stages=list(draft.stages),
    )
    job, _ = service.create_job(session, settings, preflight_spec, created_by, None)
    return job, draft.skipped


def _add(
    draft: _Draft, stage: ResolvedStage, alive_workers: Sequence[Worker], options: PreflightOptions
) -> None:
    """Add a stage to the draft, or the reason why it is skipped."""
    config = stage.config
    if isinstance(config, TrainingConfig | MergeConfig | ExportConfig | ImportConfig):
        start = config.base if isinstance(config, TrainingConfig) else config.model
        draft.bases[stage.name] = draft.bases[start.stage] if isinstance(start, StageOutput) else start
    if not isinstance(config, TrainingConfig | PrepareConfig):
        return
    missing = _explain_missing_input(draft, config)
    if missing is not None:
        draft.skipped.append(SkippedStageView(stage=stage.name, reason=missing))
    elif isinstance(config, PrepareConfig):
        draft.stages.append(config)
    else:
        draft.stages.append(
            PreflightConfig(
                name=stage.name,
                queue=stage.queue,
                target=config.model_copy(update=_existing_models(draft, stage.name, config)),
                hosts=_list_hosts(alive_workers, stage.queue, stage.kind),
                probe_steps=options.probe_steps,
                price_per_hour=options.price_per_hour,
            )
        )


def _existing_models(draft: _Draft, name: str, config: TrainingConfig) -> dict[str, ModelRef]:
    """Return the models of a stage, and in place of one that an earlier stage trains, its starting point."""
    models: dict[str, ModelRef] = {"base": draft.bases[name]}
    if isinstance(config, DistillConfig) and isinstance(config.teacher, StageOutput):
        models["teacher"] = draft.bases[config.teacher.stage]
    return models


def _explain_missing_input(draft: _Draft, config: TrainingConfig | PrepareConfig) -> str | None:
    """Return which input of the stage exists only after the whole job has run, if any."""
    names = {stage.name for stage in draft.stages}
    for reference in find_references(config):
        value = reference.value
        if isinstance(value, StageDataset) and value.stage not in names:
            return f"Stage {value.stage!r} produces its data and cannot run before the job does."
        if isinstance(value, StageOutput) and isinstance(config, PrepareConfig):
            return f"It needs the model of stage {value.stage!r}, which does not exist yet."
    return None


def _list_hosts(alive_workers: Sequence[Worker], queue: Queue, stage: StageKind) -> list[HostMemory]:
    """Return the memory of the hosts whose workers can run the stage."""
    hosts = []
    for worker in workers.filter_capable_workers(alive_workers, queue, stage):
        gpus = worker.hardware.get("gpus", [])
        if queue is Queue.cuda and gpus:
            memory_bytes = min(gpu["memory_bytes"] or worker.hardware["memory_bytes"] for gpu in gpus)
            hosts.append(
                HostMemory(worker=worker.name, device="cuda", devices=len(gpus), memory_bytes=memory_bytes)
            )
        elif queue is not Queue.cuda:
            hosts.append(HostMemory(worker=worker.name, memory_bytes=worker.hardware["memory_bytes"]))
    return hosts
