"""Resolution of a job spec: each stage gets a name, a queue, and the ids of its datasets and models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import Conflict, UnprocessableContent
from app.jobs.plan_checks import check_merge, check_processes
from app.jobs.schemas import JobCreate
from app.models import references
from app.settings import Settings, get_settings
from app.tables import Alias, Dataset
from app.workers.queue_choice import QueueChoice, QueueChooser
from trainers.configs import (
    AdaptedModel,
    DatasetRef,
    DeployConfig,
    EngineClientConfig,
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    PreflightConfig,
    Product,
    Queue,
    Rows,
    StageDataset,
    StageKind,
)
from trainers.configs.references import (
    REGISTRY_PREFIX,
    DatasetField,
    ModelField,
    find_references,
    replace_references,
)
from trainers.configs.stage_config import AnyStage
from trainers.configs.training import MAX_HELD_OUT, TrainingConfig
from trainers.data.formats import RowFormat
from trainers.data.mixture import count_shares
from trainers.runtime.error_codes import ErrorCode


class DatasetNotReady(Conflict):
    """The dataset exists, but its file has faults."""

    code = ErrorCode.dataset_not_ready


@dataclass(frozen=True)
class ResolvedStage:
    """A stage in which only the outputs of earlier stages are still unknown."""

    name: str
    kind: StageKind
    queue: Queue
    queue_reason: str
    config: AnyStage
    datasets: dict[str, Dataset]
    """The existing datasets that it reads, by the path of the field that names them."""

    @property
    def mixture(self) -> list[tuple[Dataset, int]]:
        """The datasets of a mixture with their rows in an epoch; empty if one does not exist yet."""
        shares = getattr(self.config, "dataset", None)
        if not isinstance(shares, list):
            return []
        found = [self.datasets.get(f"dataset.{position}.dataset") for position in range(len(shares))]
        existing = [dataset for dataset in found if dataset is not None]
        if len(existing) < len(shares):
            return []
        counts = count_shares(shares, [dataset.row_count for dataset in existing])
        return list(zip(existing, counts, strict=True))

    @property
    def training_rows(self) -> int | None:
        """Rows of an epoch; None if an earlier stage produces some of them."""
        if (dataset := self.datasets.get("dataset")) is not None:
            return dataset.row_count
        return sum(rows for _, rows in self.mixture) or None

    @property
    def estimated_steps(self) -> int | None:
        """Optimizer steps of a training stage; None if an earlier stage produces its dataset."""
        if not isinstance(self.config, TrainingConfig):
            return None
        if self.config.max_steps or self.training_rows is None:
            return self.config.max_steps
        return math.ceil(self.training_rows * self.config.epochs / self.config.rows_per_step)


def resolve_stages(session: Session, spec: JobCreate, settings: Settings) -> list[ResolvedStage]:
    """Resolve every stage of a job.

    Raises UnprocessableContent, which lists every field that names nothing, and DatasetNotReady.
    """
    errors: list[UnprocessableContent] = []
    stages: list[ResolvedStage] = []
    chooser = QueueChooser(session, settings)
    for position, stage in enumerate(spec.stages):
        choice = _choose_queue(spec, stage, chooser)
        path = f"stages.{position}"
        errors += _check_limits(stage, path, settings)
        errors += check_processes(session, settings, stage, choice.queue, path)
        errors += check_merge(session, stage, path, {other.name: other.config for other in stages})
        stages.append(_resolve_stage(session, spec, position, choice, stages, errors))
    if errors:
        raise _combine(errors)
    for position, resolved in enumerate(stages):
        for field, dataset in resolved.datasets.items():
            _require_ready(dataset, f"stages.{position}.{field}")
    return stages


def _choose_queue(spec: JobCreate, stage: AnyStage, chooser: QueueChooser) -> QueueChoice:
    if stage.queue is not None:
        return QueueChoice(stage.queue, "The stage, or one of its presets, names it.")
    if spec.queue is not None:
        return QueueChoice(spec.queue, "The job names it.")
    return chooser.choose(StageKind(stage.stage), stage.suitable_queues)


def _resolve_stage(
    session: Session,
    spec: JobCreate,
    position: int,
    choice: QueueChoice,
    earlier: Sequence[ResolvedStage],
    errors: list[UnprocessableContent],
) -> ResolvedStage:
    """Resolve one stage; a reference that names nothing is left unchanged and added to the errors."""
    stage, path = spec.stages[position], f"stages.{position}"
    name = stage.name or stage.stage
    errors += _check_names(session, stage, name, path, earlier)
    own_paths = {reference.path for reference in find_references(stage)}
    config = stage.model_copy(update={"name": name, "queue": choice.queue})
    if isinstance(config, TrainingConfig):
        held_out = _add_evaluation_datasets(spec, config, earlier)
        config = config.model_copy(update={"held_out": held_out})
        if len(held_out) > MAX_HELD_OUT:
            message = (
                f"There are {len(held_out)} held-out datasets with those of the evaluate stages; at most "
                f"{MAX_HELD_OUT} are allowed."
            )
            errors.append(_error(f"{path}.held_out", message))
    replacements: dict[str, str] = {}
    datasets: dict[str, Dataset] = {}
    for reference in find_references(config):
        try:
            if isinstance(reference, ModelField):
                replacements |= _resolve_model(session, reference, path, earlier)
            elif (dataset := _find_dataset(session, reference, stage, path, earlier)) is not None:
                replacements[reference.path] = dataset.id
                datasets[reference.path] = dataset
        except UnprocessableContent as error:
            # The dataset of an evaluate stage is reported at that stage.
            if reference.path in own_paths:
                errors.append(error)
    errors += _check_distinct(replacements, path)
    config = replace_references(config, replacements)
    return ResolvedStage(name, StageKind(stage.stage), choice.queue, choice.reason, config, datasets)


def _check_distinct(replacements: Mapping[str, str], path: str) -> list[UnprocessableContent]:
    """Return an error for each dataset that a mixture contains under two names."""
    errors: list[UnprocessableContent] = []
    seen: set[str] = set()
    for field, name in replacements.items():
        if field.startswith("dataset.") and name in seen:
            message = f"{name} is listed twice: give it one entry, with more `rows` to repeat it."
            errors.append(_error(f"{path}.{field}", message))
        elif field.startswith("dataset."):
            seen.add(name)
    return errors


def _check_names(
    session: Session, stage: AnyStage, name: str, path: str, earlier: Sequence[ResolvedStage]
) -> list[UnprocessableContent]:
    """Return an error for each name that is taken, and for the address of an engine."""
    errors: list[UnprocessableContent] = []
    if name in {other.name for other in earlier}:
        errors.append(_error(f"{path}.name", f"An earlier stage is also called {name!r}: name this one."))
    if isinstance(stage, EngineClientConfig):
        for field in ("engine_url", "engine_model"):
            if getattr(stage, field) is not None:
                errors.append(_error(f"{path}.{field}", "Omit this field: the worker starts the engine."))
    if isinstance(stage, ExportConfig) and stage.gguf_environment is not None:
        errors.append(_error(f"{path}.gguf_environment", "Omit this field: the worker sets it."))
    if isinstance(stage, ExportConfig) and stage.push is not None:
        errors += _check_push(stage.push.repository, path)
    if isinstance(stage, ImportConfig):
        errors += _check_import(stage, path)
    if isinstance(stage, DeployConfig) and session.get(Alias, stage.deployment) is not None:
        message = f"{stage.deployment!r} is an alias. Choose another name, and point the alias at it later."
        errors.append(_error(f"{path}.deployment", message))
    return errors


def _check_push(repository: str, path: str) -> list[UnprocessableContent]:
    """Return an error unless the operator allows uploads to the namespace: they use the worker's token."""
    namespace, allowed = repository.partition("/")[0], get_settings().hub_push_namespaces
    if namespace in allowed:
        return []
    message = (
        f"This service may not upload to {namespace} on the hub; allowed: {', '.join(allowed) or 'none'}. "
        "The operator can add it to TUNESMITH_HUB_PUSH_NAMESPACES."
    )
    return [_error(f"{path}.push.repository", message)]


def _check_import(stage: ImportConfig, path: str) -> list[UnprocessableContent]:
    """Return an error for each model that an import cannot have: it comes from outside the registry."""
    errors: list[UnprocessableContent] = []
    if not isinstance(stage.model, str) or stage.model.startswith(REGISTRY_PREFIX):
        errors.append(_error(f"{path}.model", "Name a hub id or a folder; a model of the registry is in it."))
    if stage.base is not None and not isinstance(stage.base, str):
        errors.append(_error(f"{path}.base", "Name a hub id, a folder or a registry id."))
    return errors


def _check_limits(stage: AnyStage, path: str, settings: Settings) -> list[UnprocessableContent]:
    """Return an error for each limit that is above the service's own."""
    errors: list[UnprocessableContent] = []
    allowed = settings.limits_of(StageKind(stage.stage))
    for name, value in stage.limits or ():
        limit = getattr(allowed, name)
        if value is not None and limit is not None and value > limit:
            message = (
                f"{value:,} is above the service's limit of {limit:,} for a stage of kind {stage.stage}. "
                f"Lower it, or ask an operator to raise {name} in TUNESMITH_STAGE_LIMITS."
            )
            errors.append(_error(f"{path}.limits.{name}", message))
    return errors


def _add_evaluation_datasets(
    spec: JobCreate, config: TrainingConfig, earlier: Sequence[ResolvedStage]
) -> list[DatasetRef]:
    """Return the held-out datasets of a stage and those of the job's evaluate stages.

    A dataset that a later stage produces does not exist yet and is left out.
    """
    names = {stage.name for stage in earlier}
    evaluated = [stage.dataset for stage in spec.stages if isinstance(stage, EvaluateConfig)]
    existing = [dataset for dataset in evaluated if isinstance(dataset, str) or dataset.stage in names]
    return list(dict.fromkeys([*config.held_out, *existing]))


def _resolve_model(
    session: Session, reference: ModelField, path: str, earlier: Sequence[ResolvedStage]
) -> dict[str, str]:
    """Return the resolved model by its path; nothing for the output of an earlier stage."""
    value, field = reference.value, f"{path}.{reference.path}"
    if isinstance(value, str):
        return {reference.path: str(references.resolve_model(session, value, field))}
    if isinstance(value, AdaptedModel):
        raise _error(field, "Name a registry model ('model_…') instead of a base and an adapter.")
    producer = _find_earlier(value.stage, field, earlier)
    if not producer.kind.produces_model:
        raise _error(
            field, f"Stage {producer.name!r} is of kind {producer.kind}, which produces no model; sft does."
        )
    return {}


def _find_dataset(
    session: Session,
    reference: DatasetField,
    stage: AnyStage,
    path: str,
    earlier: Sequence[ResolvedStage],
) -> Dataset | None:
    """Return the dataset with this id, or the newest with this name; None if an earlier stage produces it."""
    value, field = reference.value, f"{path}.{reference.path}"
    if isinstance(value, StageDataset):
        _check_part(value, field, earlier)
        return None
    # The lock makes a request that deletes the dataset wait until this job is visible to it.
    stored = select(Dataset).where(col(Dataset.deleted_at).is_(None)).with_for_update(read=True)
    by_name = stored.where(col(Dataset.name) == value).order_by(col(Dataset.id).desc()).limit(1)
    by_id = stored.where(col(Dataset.id) == value)
    dataset = session.scalars(by_id).first() if value.startswith("dataset_") else None
    dataset = dataset or session.scalars(by_name).first()
    if dataset is None:
        raise _error(
            field, f"No dataset has the id or name {value!r}. Upload one with POST /api/v1/datasets."
        )
    if (reader := _reading_stage(reference, stage)) is not None:
        _require_format(dataset, reader, field)
    return dataset


def _check_part(value: StageDataset, field: str, earlier: Sequence[ResolvedStage]) -> None:
    producer = _find_earlier(value.stage, field, earlier)
    if producer.kind.stage.product is not Product.datasets:
        message = (
            f"Stage {producer.name!r} is of kind {producer.kind}, which produces no datasets; prepare does."
        )
        raise _error(field, message)
    if value.part not in producer.config.parts:
        parts = ", ".join(sorted(producer.config.parts)) or "none"
        message = f"Stage {producer.name!r} does not produce the part {value.part!r}. Its parts: {parts}."
        raise _error(field, message)


def _find_earlier(name: str, field: str, earlier: Sequence[ResolvedStage]) -> ResolvedStage:
    found = next((stage for stage in earlier if stage.name == name), None)
    if found is None:
        names = ", ".join(stage.name for stage in earlier) or "none"
        raise _error(field, f"No earlier stage is called {name!r}. Stages before this one: {names}.")
    return found


def _reading_stage(reference: DatasetField, stage: AnyStage) -> StageKind | None:
    """Return the kind of stage that reads the dataset's rows; None if it accepts any format."""
    if reference.name not in ("dataset", "validation_dataset"):
        return None
    kind = StageKind(stage.target.stage if isinstance(stage, PreflightConfig) else stage.stage)
    return None if kind.stage.reads is Rows.any else kind


def _require_format(dataset: Dataset, stage: StageKind, path: str) -> None:
    """Refuse rows that a stage cannot read, before hardware is used."""
    if dataset.format is RowFormat.text and not stage.stage.reads_documents:
        raise _error(
            path,
            f"Dataset {dataset.id} contains rows of `text` without a prompt, on which only `sft` can train: "
            f"{stage} needs rows with a prompt.",
        )
    reads = stage.stage.reads
    if dataset.format is None or (dataset.format.has_pairs and reads is Rows.labels):
        return
    if reads is Rows.labels:
        _require_labels(dataset, stage, path)
        return
    if dataset.format.has_pairs == (reads is Rows.pairs):
        return
    if dataset.format.has_pairs:
        raise _error(
            path,
            f"Dataset {dataset.id} contains preference pairs, but {stage} needs rows with one completion: "
            "keep only `prompt` and `chosen`, under the names `prompt` and `completion`.",
        )
    raise _error(
        path,
        f"Dataset {dataset.id} contains rows of the format {dataset.format}, but {stage} needs preference "
        "pairs: rows with `prompt`, `chosen` and `rejected`.",
    )


def _require_labels(dataset: Dataset, stage: StageKind, path: str) -> None:
    """Refuse rows without a label, and labels of one kind, from which KTO learns nothing."""
    labels = dataset.report.get("statistics", {}).get("labels")
    if labels is None:
        return  # It was validated before labels were counted: the stage itself checks them.
    expected = "each row needs a `label` that is true or false, or is a pair of `chosen` and `rejected`"
    if (labelled := sum(labels.values())) < dataset.row_count:
        raise _error(
            path,
            f"{dataset.row_count - labelled} of {dataset.row_count} rows of {dataset.id} have no label, "
            f"but for {stage} {expected}.",
        )
    if len(labels) == 1:
        [found] = labels
        raise _error(
            path,
            f"All {labelled} rows of dataset {dataset.id} have the label {found}, but {stage} learns from "
            "the difference between good and bad completions: add rows with the other label.",
        )


def _require_ready(dataset: Dataset, path: str) -> None:
    if dataset.trainable:
        return
    faults = dataset.report.get("faults") or [{"message": "The file has no rows."}]
    line, message = faults[0].get("line"), faults[0]["message"]
    first = f"Line {line}: {message}" if line else message
    count = "1 fault" if dataset.fault_count == 1 else f"{dataset.fault_count} faults"
    raise DatasetNotReady(
        f"Dataset {dataset.id} has {count}, so no stage can read it. The first: {first}",
        hint=f"Correct the file and upload it again. The report is at GET /api/v1/datasets/{dataset.id}.",
        fields=[{"field": path, "message": first}],
    )


def _error(path: str, message: str) -> UnprocessableContent:
    return UnprocessableContent(f"{path}: {message}", fields=[{"field": path, "message": message}])


def _combine(errors: Sequence[UnprocessableContent]) -> UnprocessableContent:
    """Combine all errors into one, whose message and hint are those of the first."""
    fields: list[dict[str, Any]] = [field for error in errors for field in error.fields or ()]
    return UnprocessableContent(
        f"The job is invalid. {errors[0].message}", hint=errors[0].hint, fields=fields
    )
