"""Suggestions for fields of a config that do not exist."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

UNKNOWN_FIELD: Final = "unknown_field"
MAX_LISTED: Final = 15
MIN_SIMILARITY: Final = 0.6
NEARLY_EQUAL: Final = 0.9


def suggest_fields(config: type[BaseModel], error: ValidationError) -> ValidationError:
    """Return the error with suggestions for the fields of the config itself that do not exist.

    The fields of configs that it contains already have theirs.
    """
    lines = error.errors(include_url=False)
    if not any(_is_unknown(line) for line in lines):
        return error
    return ValidationError.from_exception_data(error.title, [_convert(config, line) for line in lines])


def _is_unknown(line: Any) -> bool:
    return line["type"] == "extra_forbidden" and len(line["loc"]) == 1


def _convert(config: type[BaseModel], line: Any) -> InitErrorDetails:
    details = InitErrorDetails(type=line["type"], loc=line["loc"], input=line["input"])
    if _is_unknown(line):
        details["type"] = PydanticCustomError(
            UNKNOWN_FIELD, "{text}", {"text": _explain(config, line["loc"][0])}
        )
    elif line["type"] == UNKNOWN_FIELD:
        details["type"] = PydanticCustomError(UNKNOWN_FIELD, "{text}", line["ctx"])
    elif "ctx" in line:
        details["ctx"] = line["ctx"]
    return details


def _explain(config: type[BaseModel], name: str) -> str:
    fields = list(config.model_fields)
    nested = [path for path in _list_nested(config) if path.rpartition(".")[2] == name]
    # A plural or a slip of the pen is nearer than an equal name elsewhere.
    nearly_equal = get_close_matches(name, fields, n=1, cutoff=NEARLY_EQUAL)
    similar = [*nearly_equal, *nested] or get_close_matches(name, fields, n=3, cutoff=MIN_SIMILARITY)
    if similar:
        return f"There is no such field. Did you mean {' or '.join(similar)}?"
    if len(fields) <= MAX_LISTED:
        return f"There is no such field. The fields are {', '.join(fields)}."
    nearest = get_close_matches(name, fields, n=3, cutoff=0)
    return f"There is no such field. The nearest ones are {', '.join(nearest)}."


def _list_nested(config: type[BaseModel]) -> Iterator[str]:
    """Yield the paths of the fields of the configs that a field contains directly."""
    for name, field in config.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from (f"{name}.{inner}" for inner in kind.model_fields)
