"""Where a stage's values name models, datasets and files, however deep they stand."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trainers.configs.base import AdaptedModel, ModelRef, StageOutput
from trainers.runtime.errors import ConfigInvalid


class ReferenceKind(StrEnum):
    """What a reference stands for."""

    model = "model"
    dataset = "dataset"


# A field of one of these names means the same in every config.
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
    """A reference in its place, so that it can be replaced there; `path` is as a person would write it."""

    kind: ReferenceKind
    path: str
    holder: Any
    key: str | int

    @property
    def value(self) -> Any:
        """What is written there: a name, or `{stage: …}` as a mapping."""
        return self.holder[self.key]

    def replace(self, value: Any) -> None:
        """Write something else in its place."""
        self.holder[self.key] = value


def get_base_model(reference: ModelRef) -> str:
    """Folder or hub id of the base model; raises ConfigInvalid for a reference that is not resolved yet."""
    if isinstance(reference, StageOutput):
        raise ConfigInvalid(
            f"The model refers to the stage {reference.stage!r}, which only a job can resolve.",
            "By hand, name the folder of that stage's model.",
        )
    return reference.base if isinstance(reference, AdaptedModel) else reference


def find_references(values: dict[str, Any], path: str = "") -> Iterator[FieldReference]:
    """The references in a stage's values as plain JSON; those left out (null) are skipped."""
    for key, value in list(values.items()):
        here = f"{path}.{key}" if path else key
        kind = REFERENCE_FIELDS.get(key)
        if kind is not None and value is not None:
            yield from _named(kind, here, values, key)
        elif isinstance(value, dict):
            yield from find_references(value, here)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    yield from find_references(item, f"{here}.{position}")


def _named(kind: ReferenceKind, path: str, holder: Any, key: str) -> Iterator[FieldReference]:
    if not isinstance(holder[key], list):
        yield FieldReference(kind, path, holder, key)
        return
    for position in range(len(holder[key])):
        yield FieldReference(kind, f"{path}.{position}", holder[key], position)
