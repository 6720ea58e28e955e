"""The union of all stage configs, told apart by `stage`, and how to read one from a file."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter

from trainers.configs.stages.deploy import DeployConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.configs.stages.generate import GenerateConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.merge import MergeConfig
from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.stages.prepare import PrepareConfig
from trainers.configs.stages.sft import SftConfig


class StageKind(StrEnum):
    """The kinds of work that a job is made of."""

    prepare = "prepare"
    preflight = "preflight"
    sft = "sft"
    dpo = "dpo"
    grpo = "grpo"
    merge = "merge"
    evaluate = "evaluate"
    generate = "generate"
    deploy = "deploy"

    @property
    def makes_a_model(self) -> bool:
        """Whether a later stage may take this one's output as a model."""
        return self in {StageKind.sft, StageKind.dpo, StageKind.grpo, StageKind.merge}


AnyStage = (
    PrepareConfig
    | PreflightConfig
    | SftConfig
    | DpoConfig
    | GrpoConfig
    | MergeConfig
    | EvaluateConfig
    | GenerateConfig
    | DeployConfig
)
Stage = Annotated[AnyStage, Field(discriminator="stage")]

_stage: TypeAdapter[AnyStage] = TypeAdapter(Stage)
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def parse_stage(values: dict[str, Any]) -> AnyStage:
    """Validate one stage's values; raises `pydantic.ValidationError` naming each wrong field."""
    return _stage.validate_python(values)


def load_stage(path: Path) -> AnyStage:
    """Read a stage from YAML, with `${NAME}` and `${NAME:-default}` expanded, or from JSON as it stands.

    A person writes YAML. JSON comes from a service, whose users must not read the worker's environment.
    Raises OSError, `yaml.YAMLError` or ValueError, which names the field.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds no config: expected a mapping of fields, found {type(values).__name__}"
        )
    return parse_stage(values if path.suffix == ".json" else _expand(values))


def _expand(value: Any) -> Any:
    """Expand variables in values after parsing, so that their content cannot change the file's shape."""
    if isinstance(value, dict):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    if not isinstance(value, str):
        return value
    text = _VARIABLE.sub(_variable, value)
    # A variable that is the whole value may be a number or null, but never a mapping or a list.
    scalar = yaml.safe_load(text) if _VARIABLE.fullmatch(value) else text
    return text if isinstance(scalar, dict | list) else scalar


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match["name"], match["default"])
    if value is None:
        name = match["name"]
        raise ValueError(
            f"the config uses ${{{name}}}, which is not set; set it or write ${{{name}:-default}}"
        )
    return value
