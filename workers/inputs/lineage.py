"""The identity of models, and the datasets on which they and their ancestors were trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError
from sqlmodel import Session

from app.storage.database import read_session
from app.tables import Dataset, Model, Run
from trainers.configs.references import DatasetField, find_references
from trainers.configs.stages.evaluate import ModelOrigin
from trainers.evaluation.identity import hash_weights
from workers.inputs.datasets import fetch_dataset, find_dataset
from workers.inputs.errors import InputDatasetNotFound
from workers.inputs.models import ResolvedModel

MAX_ANCESTORS = 20


@dataclass
class _Lineage:
    """The training sets of a model and its ancestors, by id, and the ids of those that were deleted."""

    datasets: dict[str, Dataset] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def find_origins(models: Mapping[str, ResolvedModel]) -> dict[str, ModelOrigin]:
    """Return the name, the identity and the training data of each model, by its name in the evaluation.

    Training sets that this host does not have yet are fetched.
    """
    return {path.removeprefix("others."): _find_origin(model) for path, model in models.items()}


def _find_origin(model: ResolvedModel) -> ModelOrigin:
    with read_session() as session:
        registered = session.get(Model, model.model_id) if model.model_id else None
        lineage = _Lineage()
        if registered is not None:
            _add_ancestors(session, registered, lineage)
        elif model.checkpoint_of is not None:
            _add_run(session, model.checkpoint_of, lineage)
    facts = {"base": model.origin}
    if Path(model.origin).is_absolute():
        # The folder's path is this host's own; its weights are what counts.
        facts = {"base": _shorten(model.origin), "base_sha256": _hash_base(model.base)}
    if registered is not None:
        facts |= {"model_id": registered.id, "sha256": registered.sha256}
    if model.checkpoint_of is not None:
        facts |= {"run_id": model.checkpoint_of, "sha256": hash_weights(model.adapter or Path(model.base))}
    training_data = {
        f"{dataset.name} ({dataset.id})": str(fetch_dataset(dataset)) for dataset in lineage.datasets.values()
    }
    return ModelOrigin(
        name=_describe(model, registered),
        facts=facts,
        training_data=training_data,
        missing_data=lineage.missing,
    )


def _describe(model: ResolvedModel, registered: Model | None) -> str:
    if registered is not None:
        return f"{registered.name} ({registered.id})"
    if model.checkpoint_of is not None:
        step = "" if model.checkpoint is None else f", step {model.checkpoint}"
        return f"checkpoint of {model.checkpoint_of}{step}"
    return _shorten(model.origin)


def _shorten(origin: str) -> str:
    return "/".join(Path(origin).parts[-2:]) if origin.startswith("/") else origin


@lru_cache(maxsize=64)
def _hash_base(folder: str) -> str:
    """Return the hash of a folder's weights, which are read once in the life of this worker."""
    return hash_weights(Path(folder))


def _add_ancestors(session: Session, model: Model | None, lineage: _Lineage) -> None:
    for _ in range(MAX_ANCESTORS):
        if model is None:
            return
        if model.run_id is not None:
            _add_run(session, model.run_id, lineage, ancestors=False)
        model = session.get(Model, model.parent_id) if model.parent_id else None


def _add_run(session: Session, run_id: str, lineage: _Lineage, *, ancestors: bool = True) -> None:
    """Add the datasets of a training run, those of a mixture too, and of the model that it started from."""
    run = session.get(Run, run_id)
    if run is None or not run.stage.trains:
        return
    for dataset_id in _list_datasets(session, run, lineage):
        dataset = session.get(Dataset, dataset_id)
        if dataset is None or dataset.deleted_at is not None:
            lineage.missing.append(dataset_id)
        else:
            lineage.datasets[dataset_id] = dataset
    base = run.config.get("base")
    if ancestors and isinstance(base, str):
        _add_ancestors(session, session.get(Model, base), lineage)


def _list_datasets(session: Session, run: Run, lineage: _Lineage) -> Iterator[str]:
    try:
        references = list(find_references(run.stage_config()))
    except ValidationError:
        # The run is of an older version, whose config is only read.
        lineage.missing.append(f"the data of {run.id}")
        return
    for reference in references:
        if isinstance(reference, DatasetField) and reference.name == "dataset":
            try:
                yield find_dataset(run.job_id, reference.value).id
            except InputDatasetNotFound:
                lineage.missing.append(str(reference.value))
