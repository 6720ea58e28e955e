"""References to models and datasets: the fields that contain them, at any depth, and where a model is.

A job's spec may name a model in several ways. The API resolves each name once and stores the text of its
location, which a worker parses again. The form of that text alone decides its kind, so that no folder which
happens to exist can turn a hub id into a path.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from trainers.configs.base import (
    WEIGHTLESS_MODELS,
    AdaptedModel,
    CheckpointModel,
    DatasetRef,
    DatasetShare,
    DeployedModel,
    EndpointModel,
    ModelRef,
    ServedModel,
    StageOutput,
)
from trainers.runtime.errors import ConfigInvalid

C = TypeVar("C", bound=BaseModel)

# A field with one of these names has the same meaning in every config.
MODEL_FIELDS = frozenset({"base", "model", "baseline", "teacher"})
# Fields with several models by name.
MODEL_MAPS = frozenset({"others"})
DATASET_FIELDS = frozenset({"dataset", "validation_dataset", "held_out", "not_in", "prompts"})

# ORG/NAME, and the revision after an @: a commit, a tag or a branch.
HUB_MODEL = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII
)
REGISTRY_PREFIX = "model_"


@dataclass(frozen=True)
class ModelField:
    """A field that names a model; `path` is dotted, such as `target.base`, and `name` its last part."""

    path: str
    name: str
    value: ModelRef | CheckpointModel


@dataclass(frozen=True)
class DatasetField:
    """A field, or an item of a field, that names a dataset: the path of an item is `held_out.0`."""

    path: str
    name: str
    value: DatasetRef


def get_base_model(reference: ModelRef) -> str:
    """Return the folder or hub id of the base model; raise ConfigInvalid if the reference is unresolved."""
    if isinstance(reference, StageOutput):
        raise ConfigInvalid(
            f"The model refers to the stage {reference.stage!r}, which only a job can resolve.",
            "When you run the program by hand, name the folder of that stage's model.",
        )
    return reference.base if isinstance(reference, AdaptedModel) else reference


def find_references(config: BaseModel, prefix: str = "") -> Iterator[ModelField | DatasetField]:
    """Yield the references of a config in the order of its fields; null ones are skipped."""
    for name, value in config:
        path = f"{prefix}{name}"
        # Of a model behind an endpoint, `model` is its name there.
        if value is None or isinstance(value, WEIGHTLESS_MODELS):
            continue
        if name in MODEL_FIELDS:
            yield ModelField(path, name, value)
        elif name in DATASET_FIELDS and isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, DatasetShare):
                    yield DatasetField(f"{path}.{position}.dataset", name, item.dataset)
                else:
                    yield DatasetField(f"{path}.{position}", name, item)
        elif name in DATASET_FIELDS:
            yield DatasetField(path, name, value)
        elif name in MODEL_MAPS:
            for role, model in value.items():
                if not isinstance(model, WEIGHTLESS_MODELS):
                    yield ModelField(f"{path}.{role}", name, model)
        elif isinstance(value, BaseModel):
            yield from find_references(value, f"{path}.")
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, BaseModel) and not isinstance(item, WEIGHTLESS_MODELS):
                    yield from find_references(item, f"{path}.{position}.")


def find_served_models(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, ServedModel]]:
    """Yield the models of a config that already generate, at any depth, with the paths of their fields."""
    for name, value in config:
        yield from _find_served(value, f"{prefix}{name}")


def _find_served(value: object, path: str) -> Iterator[tuple[str, ServedModel]]:
    if isinstance(value, EndpointModel | DeployedModel):
        yield path, value
    elif isinstance(value, BaseModel):
        yield from find_served_models(value, f"{path}.")
    elif isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _find_served(item, f"{path}.{key}")


def replace_references(config: C, replacements: Mapping[str, Any], prefix: str = "") -> C:
    """Return a copy of the config in which each reference whose path is a key has the mapped value.

    The copy is not validated again: a replacement must have a type that the field allows.
    """
    if not any(path.startswith(prefix) for path in replacements):
        return config

    def replace(value: Any, path: str) -> Any:
        if path in replacements:
            return replacements[path]
        if isinstance(value, BaseModel):
            return replace_references(value, replacements, f"{path}.")
        if isinstance(value, list):
            return [replace(item, f"{path}.{position}") for position, item in enumerate(value)]
        if isinstance(value, dict):
            return {name: replace(item, f"{path}.{name}") for name, item in value.items()}
        return value

    changed = {field: replace(value, f"{prefix}{field}") for field, value in config}
    return config.model_copy(update=changed)


@dataclass(frozen=True)
class HubModel:
    """A model on the hub; without a revision, its newest commit when it is fetched."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return `org/name`, or `org/name@revision`."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class RegistryModel:
    """A model of our registry."""

    id: str

    def __str__(self) -> str:
        """Return its id."""
        return self.id


@dataclass(frozen=True)
class FolderModel:
    """A model in a folder, which must be under a root that the worker allows."""

    path: Path

    def __str__(self) -> str:
        """Return the absolute path."""
        return str(self.path)


ModelLocation = HubModel | RegistryModel | FolderModel


def parse_location(text: str) -> ModelLocation:
    """Parse the text of a location; raises ValueError, also for a relative path."""
    if text.startswith(REGISTRY_PREFIX):
        return RegistryModel(text)
    if text.startswith("/"):
        return FolderModel(Path(text))
    if (match := HUB_MODEL.fullmatch(text)) is not None and ".." not in text:
        return HubModel(match["name"], match["revision"])
    raise ValueError(f"{text!r} is not an absolute folder, a hub id such as 'org/name', or a registry id")
