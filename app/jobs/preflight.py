"""Preflight jobs: short runs that check the stages of another job before it is submitted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sqlmodel import Session

from app.http.errors import UnprocessableContent
from app.idempotency.creation import Record
from app.jobs import service
from app.jobs.graph.resolved_stage import ResolvedStage
from app.jobs.resolve import resolve_stages
from app.jobs.row_checks import check_scored_rows
from app.jobs.schemas import JobCreate, PreflightOptions, PreflightView, SkippedStageView
from app.models.templates import check_stage_templates
from app.runs.names import PREFLIGHT_PREFIX
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Job, Worker
from app.workers import service as workers
from app.workers.capable import filter_capable_workers
from app.workers.slots import FreeSlots, count_free_slots
from trainers.configs import (
    AnyStage,
    DistillConfig,
    GateOutcome,
    HostMemory,
    ModelRef,
    PreflightConfig,
    PrepareConfig,
    Queue,
    StageDataset,
    StageKind,
    StageOutput,
)
from trainers.configs.references import find_references
from trainers.configs.training import ChatTemplateName, TrainingConfig
from trainers.configs.validation import ValidatedTrainingConfig
from trainers.runtime.error_codes import ErrorCode

CHECKED = [
    kind
    for kind in StageKind
    if kind.stage.config in get_args(PreflightConfig.model_fields["target"].annotation)
]


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
    templates: dict[str, ChatTemplateName | None] = field(default_factory=dict)
    """For each of them: the chat template that the chain has chosen."""


def create_preflight(
    session: Session, settings: Settings, spec: JobCreate, options: PreflightOptions, created_by: str
) -> tuple[Job, list[SkippedStageView]]:
    """Queue a `preflight` run for each stage with a model, after the `prepare` stages that produce its data.

    A stage that continues from an earlier one is checked on the model which that one started from: its
    tokenizer, template and size are the same. Returns the job and the skipped stages. Raises the errors of
    `resolve_stages`, TemplateUnusable and NothingToCheck.
    """
    stages = _without_sweeps(spec)
    check_stage_templates(stages)
    check_scored_rows(stages)
    draft = _draft_checks(session, settings, spec, options)
    if not any(isinstance(stage, PreflightConfig) for stage in draft.stages):
        reasons = "".join(f" {skipped.stage}: {skipped.reason}" for skipped in draft.skipped)
        raise NothingToCheck(
            f"The job has no stage that can be checked before it runs.{reasons}",
            hint=f"Preflight checks the stages {', '.join(CHECKED)}.",
        )
    preflight_spec = JobCreate(
        name=f"{PREFLIGHT_PREFIX}{spec.name}"[:200],
        labels=spec.labels,
        priority=100,
        queue=spec.queue,
        stages=list(draft.stages),
    )
    job, _ = service.create_job(session, settings, preflight_spec, created_by, None)
    return job, draft.skipped


def submit_preflight(
    settings: Settings, spec: JobCreate, options: PreflightOptions, created_by: str, record: Record
) -> str:
    """Commit the job of a preflight together with what `record` stores of its id; return the id."""
    with transaction() as session:
        job, _ = create_preflight(session, settings, spec, options, created_by)
        record(session, job.id)
        return job.id


def read_preflight(
    settings: Settings, job_id: str, spec: JobCreate, options: PreflightOptions
) -> PreflightView:
    """Return the stored job of a preflight, with the stages of the spec that it skips."""
    with read_session() as session:
        job = service.view_job(session, settings, service.get_job(session, job_id))
        return PreflightView(job=job, skipped=_draft_checks(session, settings, spec, options).skipped)


def _draft_checks(session: Session, settings: Settings, spec: JobCreate, options: PreflightOptions) -> _Draft:
    draft, alive = _Draft(), workers.AliveWorkers(settings)
    checked = spec.model_copy(update={"stages": _without_sweeps(spec), "host": None})
    for stage in resolve_stages(session, checked, settings, alive):
        slots = count_free_slots(session, alive.read(session))
        _add(draft, stage, alive.read(session), slots, options)
    return draft


def _without_sweeps(spec: JobCreate) -> list[AnyStage]:
    """Return the stages: a sweep is checked once, with the values of the stage itself."""
    return [
        stage.model_copy(update={"sweep": None}) if isinstance(stage, ValidatedTrainingConfig) else stage
        for stage in spec.stages
    ]


def _add(
    draft: _Draft,
    stage: ResolvedStage,
    alive_workers: Sequence[Worker],
    slots: FreeSlots,
    options: PreflightOptions,
) -> None:
    """Add a stage to the draft, or the reason why it is skipped."""
    config = stage.config
    missing = _explain_missing_input(draft, config)
    if isinstance(config, PrepareConfig):
        # One check after another: several side by side would share the memory that each of them measures.
        unordered = config.model_copy(update={"needs": None, "when": GateOutcome.met})
        draft.stages += [unordered] if missing is None else []
    start = _find_start(draft, config)
    if start is not None:
        draft.bases[stage.name], draft.templates[stage.name] = start
    if missing is not None and (stage.kind in CHECKED or isinstance(config, PrepareConfig)):
        draft.skipped.append(SkippedStageView(stage=stage.name, reason=missing))
    elif stage.kind in CHECKED:
        assert start is not None, "every stage that is checked has a model"
        hosts = _list_hosts(alive_workers, slots, stage.queue, stage.kind)
        draft.stages.append(_make_check(draft, stage, *start, hosts, options))


def _make_check(
    draft: _Draft,
    stage: ResolvedStage,
    base: ModelRef,
    template: ChatTemplateName | None,
    hosts: list[HostMemory],
    options: PreflightOptions,
) -> PreflightConfig:
    """Return the check of a stage on the model that its chain of stages started from."""
    config = stage.config
    is_training = isinstance(config, TrainingConfig)
    changes: dict[str, ModelRef | None] = {"base": base} if is_training else {"model": base, "baseline": None}
    if isinstance(config, DistillConfig) and isinstance(config.teacher, StageOutput):
        changes["teacher"] = draft.bases[config.teacher.stage]
    fields = {name: value for name, value in changes.items() if name in type(config).model_fields}
    return PreflightConfig(
        name=stage.name,
        queue=stage.queue,
        target=config.model_copy(update=fields),
        model_template=template,
        hosts=hosts if is_training else [],
        # A student whose teacher is trained from the same model has nothing to learn before that.
        probe_steps=options.probe_steps if is_training and fields.get("teacher") != base else 0,
        price_per_hour=options.price_per_hour,
    )


def _find_start(draft: _Draft, config: AnyStage) -> tuple[ModelRef, ChatTemplateName | None] | None:
    """Return the model that the stage's chain of stages started from, and the template that it has chosen.

    None for a stage without a model.
    """
    start = getattr(config, "base" if isinstance(config, TrainingConfig) else "model", None)
    own = getattr(config, "template", None)
    if start is None:
        return None
    if isinstance(start, StageOutput):
        return draft.bases[start.stage], own or draft.templates[start.stage]
    return start, own


def _explain_missing_input(draft: _Draft, config: AnyStage) -> str | None:
    """Return which input of the stage exists only after the whole job has run, if any."""
    names = {stage.name for stage in draft.stages}
    for reference in find_references(config):
        value = reference.value
        if isinstance(value, StageDataset) and value.stage not in names:
            return f"Stage {value.stage!r} produces its data and cannot run before the job does."
        if isinstance(value, StageOutput) and isinstance(config, PrepareConfig):
            return f"It needs the model of stage {value.stage!r}, which does not exist yet."
    return None


def _list_hosts(
    alive_workers: Sequence[Worker], slots: FreeSlots, queue: Queue, stage: StageKind
) -> list[HostMemory]:
    """Return the memory of the hosts whose workers can run the stage.

    Of a GPU, what other programs use is left out. What runs and engines of this service use is not: they have
    ended before the stage gets the GPU.
    """
    hosts = []
    for worker in filter_capable_workers(alive_workers, queue, stage):
        gpus = worker.hardware.get("gpus", [])
        if queue is Queue.cuda and gpus:
            is_idle = slots[worker.id].get(queue) == worker.slots.get(queue)
            free = [
                (gpu["memory_bytes"] or worker.hardware["memory_bytes"])
                - ((gpu.get("used_bytes") or 0) if is_idle else 0)
                for gpu in gpus
            ]
            memory_bytes = max(1, min(free))
            hosts.append(
                HostMemory(worker=worker.name, device="cuda", devices=len(gpus), memory_bytes=memory_bytes)
            )
        elif queue is not Queue.cuda:
            memory_bytes = worker.hardware["memory_bytes"]
            device: Literal["cpu", "mlx"] = "mlx" if queue is Queue.mlx else "cpu"
            hosts.append(HostMemory(worker=worker.name, device=device, memory_bytes=memory_bytes))
    return hosts
