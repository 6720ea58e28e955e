"""What the inputs of a new job suggest: datasets, models, and outputs of the stages before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from app.models.suggestions import SuggestedModel, suggest_models
from app.web.views.new_job.draft import Spec, kind_of, show_reference
from app.web.views.new_job.start import suggest_datasets
from trainers.configs import StageKind
from trainers.configs.base import DatasetPart

MODEL_FIELDS = ("base", "model", "baseline", "teacher")


@dataclass(frozen=True)
class Suggestions:
    """The datasets and the models that a job can name."""

    datasets: Sequence[str]
    models: Sequence[SuggestedModel]


def load_suggestions(session: Session) -> Suggestions:
    """Return the newest datasets that jobs can use, and the models."""
    return Suggestions(suggest_datasets(session), suggest_models(session))


def list_dataset_references(spec: Spec) -> list[str]:
    """Return the outputs of the draft's stages that a field of a dataset can name."""
    names = _list_names(spec, lambda kind: kind is StageKind.prepare)
    return [show_reference({"stage": name, "part": part.value}) for name in names for part in DatasetPart]


def list_model_references(spec: Spec) -> list[str]:
    """Return the outputs of the draft's stages that a field of a model can name."""
    return [show_reference({"stage": name}) for name in _list_names(spec, lambda kind: kind.trains)]


def choose_list(name: str) -> str:
    """Return the list of suggestions of a field by its name, or ""."""
    if "dataset" in name:
        return "dataset-names"
    return "model-names" if name in MODEL_FIELDS else ""


def _list_names(spec: Spec, is_wanted: Callable[[StageKind], bool]) -> list[str]:
    stages = spec.get("stages")
    named = [each for each in (stages if isinstance(stages, list) else []) if isinstance(each, dict)]
    found = [str(each.get("name") or kind) for each in named if (kind := kind_of(each)) and is_wanted(kind)]
    return list(dict.fromkeys(found))
