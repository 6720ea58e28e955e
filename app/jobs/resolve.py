"""Resolution of a job spec: each stage gets a name, a queue, and the ids of its datasets and models."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select
from sqlmodel import Session, col

from app.graders.service import check_python_graders
from app.hosts.job_hosts import can_use_host
from app.http.errors import UnprocessableContent, field_error
from app.jobs.graph.backends import check_backend
from app.jobs.graph.gates import check_gate
from app.jobs.graph.needs import ResolvedNeeds, resolve_needs, stage_name
from app.jobs.graph.nodes import check_nodes
from app.jobs.graph.promotions import check_promotion
from app.jobs.graph.resolved_stage import ResolvedStage
from app.jobs.graph.sweeps import list_select_errors
from app.jobs.graph.unused_fields import check_unused_fields
from app.jobs.plan_checks import (
    check_batch,
    check_deployment,
    check_evaluations,
    check_limits,
    check_merge,
    check_names,
    check_processes,
    check_rescue,
    check_served_models,
    require_checkpoint,
)
from app.jobs.row_checks import reading_stage, require_format, require_ready
from app.jobs.schemas import JobCreate
from app.models import references
from app.settings import Settings
from app.tables import Dataset
from app.workers.queue_choice import QueueChoice, QueueChooser
from app.workers.service import AliveWorkers
from trainers.configs import (
    AdaptedModel,
    DatasetRef,
    EvaluateConfig,
    GateConfig,
    LmEvalConfig,
    Product,
    PromoteConfig,
    Queue,
    SelectConfig,
    StageDataset,
    StageKind,
)
from trainers.configs.base import CheckpointModel
from trainers.configs.references import (
    DatasetField,
    ModelField,
    find_references,
    replace_references,
)
from trainers.configs.stage_config import AnyStage
from trainers.configs.training import MAX_HELD_OUT, TrainingConfig

# The lock makes a request that deletes the dataset wait until this job is visible to it.
_STORED = select(Dataset).where(col(Dataset.deleted_at).is_(None)).with_for_update(read=True)
_DATASET_BY_ID = _STORED.where(col(Dataset.id) == bindparam("value"))
_DATASET_BY_NAME = (
    _STORED.where(col(Dataset.name) == bindparam("value")).order_by(col(Dataset.id).desc()).limit(1)
)


def resolve_stages(
    session: Session, spec: JobCreate, settings: Settings, alive: AliveWorkers
) -> list[ResolvedStage]:
    """Resolve every stage of a job.

    Raises UnprocessableContent, which lists every field that names nothing, and DatasetNotReady.
    """
    errors: list[UnprocessableContent] = []
    stages: list[ResolvedStage] = []
    chooser = QueueChooser(session, settings, alive)
    for position, stage in enumerate(spec.stages):
        choice = _choose_queue(spec, stage, chooser)
        path = f"stages.{position}"
        needs = resolve_needs(spec.stages, position, {other.name: other.resolved_needs for other in stages})
        errors += needs.errors
        errors += check_batch(session, stage, path)
        errors += check_rescue(session, stage, path)
        errors += check_limits(stage, path, settings)
        errors += check_served_models(session, stage, path, settings)
        errors += check_python_graders(stage, path, settings)
        errors += check_processes(session, alive, stage, choice.queue, path)
        errors += check_nodes(stage, choice.queue, path, settings, has_own_host=spec.host is not None)
        errors += check_unused_fields(stage, choice.queue, path)
        errors += check_backend(stage, choice.queue, alive.read(session), path)
        earlier = {other.name: other.config for other in stages}
        errors += check_merge(session, stage, path, earlier)
        errors += check_deployment(session, stage, path, earlier)
        upstream = {name: config for name, config in earlier.items() if name in needs.upstream}
        errors += check_evaluations(session, stage, path, upstream)
        resolved = _resolve_stage(session, spec, position, choice, needs, stages, errors)
        if isinstance(resolved.config, GateConfig):
            resolved, found = check_gate(session, resolved, resolved.config, path, stages)
            errors += found
        if isinstance(resolved.config, PromoteConfig):
            resolved, found = check_promotion(session, resolved, resolved.config, path, stages)
            errors += found
        if isinstance(resolved.config, SelectConfig):
            errors += list_select_errors(resolved.config, path, stages, needs.upstream)
        stages.append(resolved)
    if errors:
        raise _combine(errors)
    for position, resolved in enumerate(stages):
        for field, dataset in resolved.datasets.items():
            require_ready(dataset, f"stages.{position}.{field}")
    return stages


def _choose_queue(spec: JobCreate, stage: AnyStage, chooser: QueueChooser) -> QueueChoice:
    if stage.queue is not None:
        return QueueChoice(stage.queue, "The stage, or one of its presets, names it.")
    if spec.queue is not None:
        return QueueChoice(spec.queue, "The job names it.")
    if spec.host is not None and can_use_host(stage):
        return QueueChoice(Queue.cuda, "The job has a host of its own.")
    capabilities = {queue: stage.capability_on(queue) for queue in stage.suitable_queues}
    return chooser.choose(StageKind(stage.stage), stage.suitable_queues, capabilities)


def _resolve_stage(
    session: Session,
    spec: JobCreate,
    position: int,
    choice: QueueChoice,
    needs: ResolvedNeeds,
    earlier: Sequence[ResolvedStage],
    errors: list[UnprocessableContent],
) -> ResolvedStage:
    """Resolve one stage; a reference that names nothing is left unchanged and added to the errors."""
    stage, path = spec.stages[position], f"stages.{position}"
    name = stage_name(stage)
    errors += check_names(session, stage, name, path, {other.name for other in earlier})
    own_paths = {reference.path for reference in find_references(stage)}
    upstream = [other for other in earlier if other.name in needs.upstream]
    config = stage.model_copy(
        update={"name": name, "queue": choice.queue, "needs": [need.name for need in needs.direct]}
    )
    if isinstance(config, TrainingConfig):
        held_out = _add_evaluation_datasets(spec, config, upstream)
        config = config.model_copy(update={"held_out": held_out})
        if len(held_out) > MAX_HELD_OUT:
            message = (
                f"There are {len(held_out)} held-out datasets with those of the evaluate stages; at most "
                f"{MAX_HELD_OUT} are allowed."
            )
            errors.append(field_error(f"{path}.held_out", message))
    replacements: dict[str, str] = {}
    datasets: dict[str, Dataset] = {}
    for reference in find_references(config):
        try:
            if isinstance(reference, ModelField):
                replacements |= _resolve_model(session, reference, path, earlier, needs)
            elif (dataset := _find_dataset(session, reference, stage, path, earlier, needs)) is not None:
                replacements[reference.path] = dataset.id
                datasets[reference.path] = dataset
        except UnprocessableContent as error:
            # The dataset of an evaluate stage is reported at that stage.
            if reference.path in own_paths:
                errors.append(error)
    errors += _check_distinct(replacements, path)
    config = replace_references(config, replacements)
    return ResolvedStage(name, StageKind(stage.stage), choice.queue, choice.reason, config, datasets, needs)


def _check_distinct(replacements: Mapping[str, str], path: str) -> list[UnprocessableContent]:
    """Return an error for each dataset that a mixture contains under two names."""
    errors: list[UnprocessableContent] = []
    seen: set[str] = set()
    for field, name in replacements.items():
        if field.startswith("dataset.") and name in seen:
            message = f"{name} is listed twice: give it one entry, with more `rows` to repeat it."
            errors.append(field_error(f"{path}.{field}", message))
        elif field.startswith("dataset."):
            seen.add(name)
    return errors


def _add_evaluation_datasets(
    spec: JobCreate, config: TrainingConfig, upstream: Sequence[ResolvedStage]
) -> list[DatasetRef]:
    """Return the held-out datasets of a stage and those of the job's evaluate stages.

    A dataset that a stage produces which this one does not need may not exist yet and is left out.
    """
    names = {stage.name for stage in upstream}
    evaluated = [stage.dataset for stage in spec.stages if isinstance(stage, EvaluateConfig)]
    for stage in spec.stages:
        evaluated += stage.scored_datasets if isinstance(stage, LmEvalConfig) else []
    existing = [dataset for dataset in evaluated if isinstance(dataset, str) or dataset.stage in names]
    return list(dict.fromkeys([*config.held_out, *existing]))


def _resolve_model(
    session: Session,
    reference: ModelField,
    path: str,
    earlier: Sequence[ResolvedStage],
    needs: ResolvedNeeds,
) -> dict[str, str]:
    """Return the resolved model by its path; nothing for the output of an earlier stage."""
    value, field = reference.value, f"{path}.{reference.path}"
    if isinstance(value, str):
        return {reference.path: str(references.resolve_model(session, value, field))}
    if isinstance(value, CheckpointModel):
        require_checkpoint(session, value, field)
        return {}
    if isinstance(value, AdaptedModel):
        raise field_error(field, "Name a registry model ('model_…') instead of a base and an adapter.")
    producer = find_upstream(value.stage, field, earlier, needs)
    if not producer.kind.produces_model:
        raise field_error(
            field, f"Stage {producer.name!r} is of kind {producer.kind}, which produces no model; sft does."
        )
    return {}


def _find_dataset(
    session: Session,
    reference: DatasetField,
    stage: AnyStage,
    path: str,
    earlier: Sequence[ResolvedStage],
    needs: ResolvedNeeds,
) -> Dataset | None:
    """Return the dataset with this id, or the newest with this name; None if an earlier stage produces it."""
    value, field = reference.value, f"{path}.{reference.path}"
    if isinstance(value, StageDataset):
        _check_part(value, field, earlier, needs)
        return None
    named = {"value": value}
    dataset = session.scalars(_DATASET_BY_ID, named).first() if value.startswith("dataset_") else None
    dataset = dataset or session.scalars(_DATASET_BY_NAME, named).first()
    if dataset is None:
        raise field_error(
            field, f"No dataset has the id or name {value!r}. Upload one with POST /api/v1/datasets."
        )
    if (reader := reading_stage(reference, stage)) is not None:
        require_format(dataset, reader, field)
    return dataset


def _check_part(
    value: StageDataset, field: str, earlier: Sequence[ResolvedStage], needs: ResolvedNeeds
) -> None:
    producer = find_upstream(value.stage, field, earlier, needs)
    if producer.kind.stage.product is not Product.datasets:
        message = (
            f"Stage {producer.name!r} is of kind {producer.kind}, which produces no datasets; prepare does."
        )
        raise field_error(field, message)
    if value.part not in producer.config.parts:
        parts = ", ".join(sorted(producer.config.parts)) or "none"
        message = f"Stage {producer.name!r} does not produce the part {value.part!r}. Its parts: {parts}."
        raise field_error(field, message)


def find_upstream(
    name: str, field: str, earlier: Sequence[ResolvedStage], needs: ResolvedNeeds
) -> ResolvedStage:
    """Return the stage with this name, whose output exists when the stage with these needs starts."""
    found = next((stage for stage in earlier if stage.name == name), None)
    if found is None:
        names = ", ".join(stage.name for stage in earlier) or "none"
        raise field_error(field, f"No earlier stage is called {name!r}. Stages before this one: {names}.")
    if name not in needs.upstream:
        raise field_error(
            field,
            f"This stage may start before stage {name!r} has ended: add {name!r} to `needs`.",
        )
    return found


def _combine(errors: Sequence[UnprocessableContent]) -> UnprocessableContent:
    """Combine all errors into one, whose message and hint are those of the first."""
    fields: list[dict[str, Any]] = [field for error in errors for field in error.fields or ()]
    return UnprocessableContent(
        f"The job is invalid. {errors[0].message}", hint=errors[0].hint, fields=fields
    )
