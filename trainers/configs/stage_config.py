"""The union of all stage configs, and how to read one from a file."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, GetPydanticSchema, TypeAdapter

from trainers.configs.base import StageConfig
from trainers.configs.parsing.yaml_values import load_yaml
from trainers.configs.stage_table import StageKind
from trainers.runtime.redaction import is_secret_variable, redact

_CONFIGS = tuple(kind.stage.config for kind in StageKind)
_UNION: Any = Annotated[Union[_CONFIGS], Field(discriminator="stage")]  # noqa: UP007
# The config of any stage: the union of the configs in the table of stages, discriminated by `stage`.
AnyStage = Annotated[StageConfig, GetPydanticSchema(lambda _, handler: handler(_UNION))]

_stage: TypeAdapter[AnyStage] = TypeAdapter(AnyStage)
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def parse_stage(values: dict[str, Any]) -> AnyStage:
    """Validate the values of one stage; raises `pydantic.ValidationError`, which names each invalid field."""
    return _stage.validate_python(values)


def load_stage(path: Path) -> AnyStage:
    """Read a stage from YAML, with `${NAME}` and `${NAME:-default}` expanded, or from JSON without expansion.

    People write YAML. JSON comes from the service, whose users must not read the worker's environment.
    Raises OSError, `yaml.YAMLError` or ValueError, which names the field.
    """
    values = load_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} is not a config: expected a mapping of fields, found {type(values).__name__}"
        )
    return parse_stage(values if path.suffix == ".json" else expand_variables(values))


def expand_variables(value: Any) -> Any:
    """Expand variables after parsing, so that their content cannot change the structure of the file."""
    if isinstance(value, dict):
        return {key: expand_variables(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item) for item in value]
    if not isinstance(value, str):
        return value
    text = expand_text(value)
    # A variable that is the whole value may become a number or null, but never a mapping or a list.
    scalar = load_yaml(text) if _VARIABLE.fullmatch(value) else text
    return text if isinstance(scalar, dict | list) else scalar


def expand_text(value: str) -> str:
    """Expand variables in a text that stays one, also if the result looks like a number."""
    return _VARIABLE.sub(_get_variable, value)


def _get_variable(match: re.Match[str]) -> str:
    name = match["name"]
    value = os.environ.get(name, match["default"])
    if value is not None and (is_secret_variable(name) or redact(value) != value):
        raise ValueError(
            f"the config uses ${{{name}}}, which contains a secret, but a config is stored and shown as it "
            "is; remove it: programs read keys from the environment of their worker"
        )
    if value is None:
        raise ValueError(
            f"the config uses ${{{name}}}, which is not set; set it, or write ${{{name}:-default}}"
        )
    return value
