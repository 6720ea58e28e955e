"""From what a person wrote to what each run will do: names, queues, datasets and models made definite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.errors import Conflict, Invalid
from app.jobs.schemas import JobSpec
from app.models import references
from app.settings import Settings
from app.tables import Dataset
from trainers.configs import AdaptedModel, Queue, StageKind, StageOutput
from trainers.configs.stages import AnyStage
from trainers.configs.training import TrainingConfig

MODEL_FIELDS = ("base", "model", "baseline")


class DatasetNotReady(Conflict):
    """The dataset exists, but its file has faults."""

    code = "dataset_not_ready"


@dataclass(frozen=True)
class ResolvedStage:
    """A stage without anything left to decide but what runs before it will make."""

    name: str
    kind: StageKind
    queue: Queue
    config: AnyStage
    dataset: Dataset | None

    @property
    def stored_config(self) -> dict[str, Any]:
        """The config as the run's row keeps it and the program reads it."""
        return self.config.model_dump(mode="json")

    @property
    def estimated_steps(self) -> int | None:
        """Optimizer steps of a training stage."""
        if not isinstance(self.config, TrainingConfig) or self.dataset is None:
            return None
        rows_in_all = self.dataset.row_count * self.config.epochs
        return self.config.max_steps or math.ceil(rows_in_all / self.config.rows_per_step)


def resolve(session: Session, spec: JobSpec, settings: Settings) -> list[ResolvedStage]:
    """Make every stage definite.

    Raises Invalid naming every field that names nothing, and DatasetNotReady for a file with faults.
    """
    faults: list[Invalid] = []
    stages: list[ResolvedStage] = []
    for position, stage in enumerate(spec.stages):
        queue = stage.queue or spec.queue or settings.default_queue
        stages.append(_resolve_stage(session, stage, queue, f"stages.{position}", stages, faults))
    if faults:
        raise _joined(faults)
    for position, resolved in enumerate(stages):
        _require_ready(resolved.dataset, f"stages.{position}.dataset")
    return stages


def _resolve_stage(
    session: Session,
    stage: AnyStage,
    queue: Queue,
    path: str,
    earlier: Sequence[ResolvedStage],
    faults: list[Invalid],
) -> ResolvedStage:
    """The stage made definite; a reference that means nothing stays as it is, and its fault is noted."""
    name = stage.name or stage.stage
    definite: dict[str, Any] = {"name": name, "queue": queue}
    if name in {before.name for before in earlier}:
        faults.append(_fault(f"{path}.name", f"An earlier stage is also called {name!r}: name this one."))
    dataset = None
    for field in type(stage).model_fields:
        value = getattr(stage, field)
        try:
            if field in MODEL_FIELDS and value is not None:
                definite[field] = _model(session, value, f"{path}.{field}", earlier)
            elif field == "dataset":
                dataset = _dataset(session, value, f"{path}.{field}")
                _require_shape(dataset, stage.stage, f"{path}.{field}")
                definite[field] = dataset.id
        except Invalid as fault:
            faults.append(fault)
    return ResolvedStage(name, StageKind(stage.stage), queue, stage.model_copy(update=definite), dataset)


def _model(
    session: Session, reference: str | StageOutput | AdaptedModel, path: str, earlier: Sequence[ResolvedStage]
) -> str | StageOutput:
    if isinstance(reference, AdaptedModel):
        raise _fault(path, "Name a model of the registry ('model_…') instead of a base and an adapter.")
    if isinstance(reference, str):
        return references.resolve(session, reference, path)
    named = next((stage for stage in earlier if stage.name == reference.stage), None)
    if named is None:
        known = ", ".join(stage.name for stage in earlier) or "none"
        raise _fault(
            path, f"No earlier stage is called {reference.stage!r}. Stages before this one: {known}."
        )
    if not named.kind.makes_a_model:
        raise _fault(path, f"Stage {named.name!r} is of kind {named.kind}, which makes no model; sft does.")
    return reference


def _dataset(session: Session, reference: str, path: str) -> Dataset:
    """The dataset of this id, else the newest of this name."""
    by_name = select(Dataset).where(col(Dataset.name) == reference).order_by(col(Dataset.id).desc()).limit(1)
    dataset = session.get(Dataset, reference) or session.scalars(by_name).first()
    if dataset is None:
        raise _fault(
            path, f"No dataset has the id or the name {reference!r}. POST /api/v1/datasets takes one."
        )
    return dataset


def _require_shape(dataset: Dataset, stage: str, path: str) -> None:
    """DPO alone reads pairs; what has the other shape would fail only once it has hardware."""
    if dataset.format is None or dataset.format.has_pairs == (stage == StageKind.dpo):
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


def _require_ready(dataset: Dataset | None, path: str) -> None:
    if dataset is None or dataset.trainable:
        return
    faults = dataset.report.get("faults") or [{"message": "It has no rows."}]
    line, message = faults[0].get("line"), faults[0]["message"]
    first = f"Line {line}: {message}" if line else message
    raise DatasetNotReady(
        f"Dataset {dataset.id} has {dataset.fault_count} faults, so nothing runs on it. The first: {first}",
        hint=f"Correct the file and upload it again. GET /api/v1/datasets/{dataset.id} has the whole report.",
        fields=[{"field": path, "message": first}],
    )


def _fault(path: str, message: str) -> Invalid:
    return Invalid(f"{path}: {message}", fields=[{"field": path, "message": message}])


def _joined(faults: Sequence[Invalid]) -> Invalid:
    """All faults as one, which speaks of the first."""
    fields = [field for fault in faults for field in fault.fields or ()]
    hint = next((fault.hint for fault in faults if fault.hint), None)
    return Invalid(f"The job cannot run as it is written. {faults[0].message}", hint=hint, fields=fields)
