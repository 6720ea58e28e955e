"""Presets: fields of training stages that suit a kind of hardware or a family of models.

Each file in `trainers/presets` is one preset. A stage names one or several and overrides any of their fields.
"""

from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trainers.configs.parsing.yaml_values import load_yaml

FOLDER = Path(__file__).parent.parent / "presets"


class PresetKind(StrEnum):
    """The kind of thing that a preset suits."""

    hardware = "hardware"
    family = "family"


class Preset(BaseModel):
    """Fields for all training stages, and further fields for some kinds of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name for the field `preset` of a stage.")
    kind: PresetKind = Field(description="Whether the preset suits hardware or a family of models.")
    summary: str = Field(description="The hardware or models that the preset suits.")
    training: dict[str, Any] = Field(default_factory=dict, description="Fields of every training stage.")
    stages: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Further fields by kind of stage; they override `training`."
    )

    def fields_for(self, stage: str) -> dict[str, Any]:
        """Return the fields for a stage of this kind."""
        return merge_fields(self.training, self.stages.get(stage, {}))


@lru_cache
def load_presets() -> dict[str, Preset]:
    """Return all presets by name, those for hardware first."""
    presets = [
        Preset(name=path.stem, **load_yaml(path.read_text(encoding="utf-8")))
        for path in sorted(FOLDER.glob("*.yaml"))
    ]
    return {preset.name: preset for preset in sorted(presets, key=lambda preset: preset.kind != "hardware")}


def apply_presets(stage: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a stage, with the fields of the presets in `values["preset"]` as defaults.

    A later preset overrides an earlier one. Raises ValueError for the name of a preset that does not exist.
    """
    names = values.get("preset") or []
    if not isinstance(names, list | tuple):
        names = [names]
    fields: dict[str, Any] = {}
    for name in names:
        fields = merge_fields(fields, _get_preset(name).fields_for(stage))
    return merge_fields(fields, values)


def merge_fields(fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings recursively; an override with another `method` replaces the whole mapping."""
    merged = fields | overrides
    for key in fields.keys() & overrides.keys():
        first, second = fields[key], overrides[key]
        if isinstance(first, dict) and isinstance(second, dict) and _has_same_method(first, second):
            merged[key] = merge_fields(first, second)
    return merged


def _has_same_method(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return second.get("method", first.get("method")) == first.get("method", second.get("method"))


def _get_preset(name: Any) -> Preset:
    presets = load_presets()
    if isinstance(name, str) and name in presets:
        return presets[name]
    similar = get_close_matches(str(name), presets, n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"the presets are {', '.join(presets)}."
    raise ValueError(f"there is no preset {name!r}; {hint}")
