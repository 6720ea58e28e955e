"""From what a person wrote to what each run will do: names, queues, datasets and models made definite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import Conflict, UnprocessableContent
from app.jobs.schemas import JobCreate
from app.models import references
from app.settings import Settings
from app.tables import Alias, Dataset
from trainers.configs import (
    DeployConfig,
    EngineClientConfig,
    EvaluateConfig,
    PreflightConfig,
    PrepareConfig,
    Queue,
    StageKind,
)
from trainers.configs.references import FieldReference, ReferenceKind, find_references
from trainers.configs.stage_config import AnyStage
from trainers.configs.training import TrainingConfig
from trainers.runtime.error_codes import ErrorCode


class DatasetNotReady(Conflict):
    """The dataset exists, but its file has faults."""

    code = ErrorCode.dataset_not_ready


@dataclass(frozen=True)
class ResolvedStage:
    """A stage without anything left to decide but what runs before it will make."""

    name: str
    kind: StageKind
    queue: Queue
    config: AnyStage
    datasets: dict[str, Dataset]
    """The datasets that are there already, by the path of the field that names them."""

    @property
    def stored_config(self) -> dict[str, Any]:
        """The config as the run's row keeps it and the program reads it."""
        return self.config.model_dump(mode="json")

    @property
    def estimated_steps(self) -> int | None:
        """Optimizer steps of a training stage; None where its dataset is still to be made."""
        dataset = self.datasets.get("dataset")
        if not isinstance(self.config, TrainingConfig):
            return None
        if self.config.max_steps or dataset is None:
            return self.config.max_steps
        return math.ceil(dataset.row_count * self.config.epochs / self.config.rows_per_step)


def resolve_stages(session: Session, spec: JobCreate, settings: Settings) -> list[ResolvedStage]:
    """Make every stage definite.

    Raises Invalid naming every field that names nothing, and DatasetNotReady for a file with faults.
    """
    faults: list[UnprocessableContent] = []
    stages: list[ResolvedStage] = []
    for position, stage in enumerate(spec.stages):
        queue = stage.queue or spec.queue or settings.default_queue
        held_out = _judged_on(spec, stages) if isinstance(stage, TrainingConfig) else []
        stages.append(_resolve_stage(session, stage, queue, f"stages.{position}", stages, held_out, faults))
    if faults:
        raise _joined(faults)
    for position, resolved in enumerate(stages):
        for field, dataset in resolved.datasets.items():
            _require_ready(dataset, f"stages.{position}.{field}")
    return stages


def _judged_on(spec: JobCreate, earlier: Sequence[ResolvedStage]) -> list[Any]:
    """What the job's models are judged on, as far as it is there when the next stage begins."""
    names = {stage.name for stage in earlier}
    asked = [stage.dataset for stage in spec.stages if isinstance(stage, EvaluateConfig)]
    there = [dataset for dataset in asked if isinstance(dataset, str) or dataset.stage in names]
    return [dataset if isinstance(dataset, str) else dataset.model_dump(mode="json") for dataset in there]


def _resolve_stage(
    session: Session,
    stage: AnyStage,
    queue: Queue,
    path: str,
    earlier: Sequence[ResolvedStage],
    held_out: Sequence[Any],
    faults: list[UnprocessableContent],
) -> ResolvedStage:
    """The stage made definite; a reference that means nothing stays as it is, and its fault is noted."""
    name = stage.name or stage.stage
    if name in {before.name for before in earlier}:
        faults.append(_fault(f"{path}.name", f"An earlier stage is also called {name!r}: name this one."))
    if isinstance(stage, EngineClientConfig):
        for field in ("engine_url", "engine_model"):
            if getattr(stage, field) is not None:
                faults.append(_fault(f"{path}.{field}", "Leave it out: the worker starts the engine."))
    values = stage.model_dump(mode="json") | {"name": name, "queue": queue.value}
    if isinstance(stage, DeployConfig) and session.get(Alias, stage.deployment) is not None:
        message = f"{stage.deployment!r} is an alias. Choose another name, and move the alias to it then."
        faults.append(_fault(f"{path}.deployment", message))
    own = {reference.path for reference in find_references(values)}
    if held_out:
        values["held_out"] = values["held_out"] + [ref for ref in held_out if ref not in values["held_out"]]
    datasets: dict[str, Dataset] = {}
    for reference in find_references(values):
        try:
            if reference.kind is ReferenceKind.model:
                reference.replace(_model(session, reference, path, earlier))
            elif (dataset := _dataset(session, reference, stage, path, earlier)) is not None:
                reference.replace(dataset.id)
                datasets[reference.path] = dataset
        except UnprocessableContent as fault:
            # A dataset that the job is judged on has its fault told where it is written.
            if reference.path in own:
                faults.append(fault)
    return ResolvedStage(name, StageKind(stage.stage), queue, type(stage).model_validate(values), datasets)


def _model(session: Session, reference: FieldReference, path: str, earlier: Sequence[ResolvedStage]) -> Any:
    value, field = reference.value, f"{path}.{reference.path}"
    if isinstance(value, str):
        return references.resolve_model(session, value, field)
    if "stage" not in value:
        raise _fault(field, "Name a model of the registry ('model_…') instead of a base and an adapter.")
    named = _earlier(value["stage"], field, earlier)
    if not named.kind.produces_model:
        raise _fault(field, f"Stage {named.name!r} is of kind {named.kind}, which makes no model; sft does.")
    return value


def _dataset(
    session: Session, reference: FieldReference, stage: AnyStage, path: str, earlier: Sequence[ResolvedStage]
) -> Dataset | None:
    """The dataset of this id, else the newest of this name; None for one that an earlier stage will make."""
    value, field = reference.value, f"{path}.{reference.path}"
    trained_by = _reader(reference, stage)
    if not isinstance(value, str):
        made = _earlier(value["stage"], field, earlier)
        if not isinstance(made.config, PrepareConfig):
            raise _fault(field, f"Stage {made.name!r} is of kind {made.kind}: only prepare makes datasets.")
        if value["part"] not in made.config.parts:
            parts = ", ".join(sorted(made.config.parts))
            message = f"Stage {made.name!r} makes no part {value['part']!r}, but {parts}: see its `split`."
            raise _fault(field, message)
        return None
    by_name = select(Dataset).where(col(Dataset.name) == value).order_by(col(Dataset.id).desc()).limit(1)
    dataset = session.get(Dataset, value) or session.scalars(by_name).first()
    if dataset is None:
        raise _fault(field, f"No dataset has the id or the name {value!r}. POST /api/v1/datasets takes one.")
    if trained_by is not None:
        _require_shape(dataset, trained_by, field)
    return dataset


def _earlier(name: str, field: str, earlier: Sequence[ResolvedStage]) -> ResolvedStage:
    named = next((stage for stage in earlier if stage.name == name), None)
    if named is None:
        known = ", ".join(stage.name for stage in earlier) or "none"
        raise _fault(field, f"No earlier stage is called {name!r}. Stages before this one: {known}.")
    return named


def _reader(reference: FieldReference, stage: AnyStage) -> StageKind | None:
    """The kind of stage whose rows the dataset must be; None where any shape will do."""
    if stage.stage == StageKind.prepare or reference.key not in ("dataset", "validation_dataset"):
        return None
    return StageKind(stage.target.stage if isinstance(stage, PreflightConfig) else stage.stage)


def _require_shape(dataset: Dataset, stage: StageKind, path: str) -> None:
    """DPO alone reads pairs; what has the other shape would fail only once it has hardware."""
    if dataset.format is None or dataset.format.has_pairs == stage.stage.reads_pairs:
        return
    if dataset.format.has_pairs:
        raise _fault(
            path,
            f"Dataset {dataset.id} holds preference pairs, and {stage} needs rows with one answer: keep only "
            "`prompt` and `chosen`, under the names `prompt` and `completion`.",
        )
    raise _fault(
        path,
        f"Dataset {dataset.id} holds rows of the format {dataset.format}, and dpo needs preference pairs: "
        "rows with `prompt`, `chosen` and `rejected`.",
    )


def _require_ready(dataset: Dataset, path: str) -> None:
    if dataset.trainable:
        return
    faults = dataset.report.get("faults") or [{"message": "It has no rows."}]
    line, message = faults[0].get("line"), faults[0]["message"]
    first = f"Line {line}: {message}" if line else message
    raise DatasetNotReady(
        f"Dataset {dataset.id} has {dataset.fault_count} faults, so nothing runs on it. The first: {first}",
        hint=f"Correct the file and upload it again. GET /api/v1/datasets/{dataset.id} has the whole report.",
        fields=[{"field": path, "message": first}],
    )


def _fault(path: str, message: str) -> UnprocessableContent:
    return UnprocessableContent(f"{path}: {message}", fields=[{"field": path, "message": message}])


def _joined(faults: Sequence[UnprocessableContent]) -> UnprocessableContent:
    """All faults as one, which speaks of the first."""
    fields = [field for fault in faults for field in fault.fields or ()]
    hint = next((fault.hint for fault in faults if fault.hint), None)
    return UnprocessableContent(
        f"The job cannot run as it is written. {faults[0].message}", hint=hint, fields=fields
    )
