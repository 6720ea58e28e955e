"""The rows that selected a model: a gate on them would be too easy."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session, col, select

from app.tables import Model, Run
from trainers.configs import SelectConfig, StageDataset, StageOutput
from trainers.configs.references import REGISTRY_PREFIX
from trainers.configs.stage_config import AnyStage
from trainers.configs.validation import ValidatedTrainingConfig

MODEL_FIELDS = ("base", "model")


def find_selecting_stage(
    session: Session, model: Any, dataset: Any, earlier: Mapping[str, AnyStage]
) -> str | None:
    """Return the stage that selected a model on the rows of a dataset, in words; None if there is none.

    `model` and `dataset` are resolved references; `earlier` contains the resolved stages of the job by name.
    """
    if isinstance(model, StageOutput):
        producer = earlier.get(model.stage)
        if producer is None:
            return None
        if isinstance(producer, SelectConfig):
            # All of its tries start from one model and have the same validation rows.
            return find_selecting_stage(session, StageOutput(stage=producer.tries[0].stage), dataset, earlier)
        if dataset in list_selecting_datasets(producer):
            return f"stage {model.stage!r}"
        start = next((getattr(producer, name) for name in MODEL_FIELDS if hasattr(producer, name)), None)
        return find_selecting_stage(session, start, dataset, earlier)
    if isinstance(model, str) and model.startswith(REGISTRY_PREFIX) and isinstance(dataset, str):
        return next(_find_selecting_runs(session, model, dataset), None)
    return None


def list_selecting_datasets(config: AnyStage) -> list[Any]:
    """Return the datasets on whose rows a stage selects the model that it publishes."""
    if isinstance(config, ValidatedTrainingConfig) and config.keep_best:
        return [config.validation_dataset] if config.validation_dataset is not None else []
    return []


def _find_selecting_runs(session: Session, model_id: str, dataset_id: str) -> Iterator[str]:
    """Yield the runs in the lineage of a model that selected it on the rows of a dataset."""
    row = session.get(Model, model_id)
    while row is not None:
        run = session.get(Run, row.run_id) if row.run_id is not None else None
        if run is not None and dataset_id in _list_dataset_ids(session, run):
            yield run.id
        row = session.get(Model, row.parent_id) if row.parent_id is not None else None


def _list_dataset_ids(session: Session, run: Run) -> Iterator[str]:
    try:
        selecting = list_selecting_datasets(run.stage_config())
    except ValidationError:
        # The run is of an older version, whose config is only read.
        return
    for dataset in selecting:
        if isinstance(dataset, StageDataset):
            of_job = select(Run).where(col(Run.job_id) == run.job_id, col(Run.name) == dataset.stage)
            producer = session.exec(of_job).one_or_none()
            parts = (producer.result or {}).get("datasets", []) if producer is not None else []
            yield from (part["id"] for part in parts if part["part"] == dataset.part)
        else:
            yield dataset
