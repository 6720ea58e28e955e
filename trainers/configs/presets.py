"""Presets: fields of training stages that suit a kind of hardware or a family of models.

Each file of `trainers/recipes` is one; a stage names one or several and overrides what it likes.
"""

from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).parent.parent / "presets"


class PresetKind(StrEnum):
    """What a preset suits."""

    hardware = "hardware"
    family = "family"


class Preset(BaseModel):
    """Fields for all training stages, and more for single kinds of stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: PresetKind
    summary: str
    training: dict[str, Any] = Field(default_factory=dict, description="Fields of every training stage.")
    sft: dict[str, Any] = Field(default_factory=dict, description="Fields of `sft` stages.")
    dpo: dict[str, Any] = Field(default_factory=dict, description="Fields of `dpo` stages.")
    grpo: dict[str, Any] = Field(default_factory=dict, description="Fields of `grpo` stages.")

    def fields(self, stage: str) -> dict[str, Any]:
        """What the preset gives a stage of this kind."""
        own = {"sft": self.sft, "dpo": self.dpo, "grpo": self.grpo}[stage]
        return merge_fields(self.training, own)


@lru_cache
def load_presets() -> dict[str, Preset]:
    """All presets by name, those of hardware first."""
    every = [
        Preset(name=path.stem, **yaml.safe_load(path.read_text(encoding="utf-8")))
        for path in sorted(FOLDER.glob("*.yaml"))
    ]
    return {preset.name: preset for preset in sorted(every, key=lambda preset: preset.kind != "hardware")}


def apply_presets(stage: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values over those of the presets that `values["preset"]` names, the last of which counts most.

    Raises ValueError for a name that no preset has.
    """
    names = values.get("preset") or []
    if not isinstance(names, list | tuple):
        names = [names]
    fields: dict[str, Any] = {}
    for name in names:
        fields = merge_fields(fields, _preset(name).fields(stage))
    return merge_fields(fields, values)


def merge_fields(fields: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
    """Both together; mappings are joined, unless the second is for another `method`."""
    joined = fields | by
    for key in fields.keys() & by.keys():
        first, second = fields[key], by[key]
        if isinstance(first, dict) and isinstance(second, dict) and _same_method(first, second):
            joined[key] = merge_fields(first, second)
    return joined


def _same_method(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return second.get("method", first.get("method")) == first.get("method", second.get("method"))


def _preset(name: Any) -> Preset:
    if isinstance(name, str) and name in load_presets():
        return load_presets()[name]
    near = get_close_matches(str(name), load_presets(), n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(load_presets())}."
    raise ValueError(f"no preset is called {name!r}; {advice}")
