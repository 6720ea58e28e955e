"""References to models, datasets and files in the values of a stage, at any depth."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trainers.configs.base import AdaptedModel, ModelRef, StageOutput
from trainers.runtime.errors import ConfigInvalid


class ReferenceKind(StrEnum):
    """Kind of object that a reference names."""

    model = "model"
    dataset = "dataset"


# A field with one of these names means the same in every config.
REFERENCE_FIELDS = {
    "base": ReferenceKind.model,
    "model": ReferenceKind.model,
    "baseline": ReferenceKind.model,
    "dataset": ReferenceKind.dataset,
    "validation_dataset": ReferenceKind.dataset,
    "held_out": ReferenceKind.dataset,
    "not_in": ReferenceKind.dataset,
}


@dataclass(frozen=True)
class FieldReference:
    """A reference together with its position, so that it can be replaced; `path` is dotted, as in errors."""

    kind: ReferenceKind
    path: str
    holder: Any
    key: str | int

    @property
    def value(self) -> Any:
        """The reference itself: a name, or `{stage: …}` as a mapping."""
        return self.holder[self.key]

    def replace(self, value: Any) -> None:
        """Replace the reference in the values that contain it."""
        self.holder[self.key] = value


def get_base_model(reference: ModelRef) -> str:
    """Return the folder or hub id of the base model; raises ConfigInvalid for the output of a stage."""
    if isinstance(reference, StageOutput):
        raise ConfigInvalid(
            f"The model refers to the stage {reference.stage!r}, which only a job can resolve.",
            "Without a job, name the folder of that stage's model.",
        )
    return reference.base if isinstance(reference, AdaptedModel) else reference


def find_references(values: dict[str, Any], path: str = "") -> Iterator[FieldReference]:
    """Yield the references in a stage's values, which are plain JSON; null fields are skipped."""
    for key, value in list(values.items()):
        here = f"{path}.{key}" if path else key
        kind = REFERENCE_FIELDS.get(key)
        if kind is not None and value is not None:
            yield from _field_references(kind, here, values, key)
        elif isinstance(value, dict):
            yield from find_references(value, here)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    yield from find_references(item, f"{here}.{position}")


def _field_references(kind: ReferenceKind, path: str, holder: Any, key: str) -> Iterator[FieldReference]:
    if not isinstance(holder[key], list):
        yield FieldReference(kind, path, holder, key)
        return
    for position in range(len(holder[key])):
        yield FieldReference(kind, f"{path}.{position}", holder[key], position)
