"""What a chat offers a model besides messages: tools, and the form of the answer, with OpenAI's fields."""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from trainers.configs.parsing.json_schema import compile_schema

MAX_TOOLS = 128
MAX_OPTION_CHARACTERS = 65_536
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_FORMATS = ("text", "json_object", "json_schema")


def check_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool if it is a function with a name and a valid schema; raises ValueError."""
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:100]
        raise ValueError(f"the type {kind!r} is not offered: a tool is a `function`, which the caller runs")
    function = tool.get("function")
    if not isinstance(function, dict) or set(tool) != {"type", "function"}:
        raise ValueError("a tool has the fields `type` and `function`")
    _check_definition(function, "parameters", {"name", "description", "parameters", "strict"})
    return tool


def check_response_format(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the form of an answer, `text`, `json_object` or `json_schema`; raises ValueError."""
    kind = chosen.get("type")
    if kind not in _FORMATS:
        raise ValueError(f"the type {str(kind)[:100]!r} is unknown; known are: {', '.join(_FORMATS)}")
    if set(chosen) != ({"type", "json_schema"} if kind == "json_schema" else {"type"}):
        fields = "`type` and `json_schema`" if kind == "json_schema" else "`type` alone"
        raise ValueError(f"`{kind}` has {fields}")
    if kind == "json_schema":
        definition = chosen["json_schema"]
        if not isinstance(definition, dict) or "schema" not in definition:
            raise ValueError("`json_schema` has a `schema`")
        _check_definition(definition, "schema", {"name", "description", "schema", "strict"})
    return chosen


def _check_definition(definition: dict[str, Any], schema: str, fields: set[str]) -> None:
    name = definition.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("`name` must have 1 to 64 letters, digits, `_` or `-`")
    if unknown := set(definition) - fields:
        raise ValueError(f"{min(unknown)[:100]!r} is unknown; known are: {', '.join(sorted(fields))}")
    if not isinstance(definition.get("description"), str | None):
        raise ValueError("`description` must be a text")
    if not isinstance(definition.get("strict"), bool | None):
        raise ValueError("`strict` must be true or false")
    if definition.get(schema) is not None:
        compile_schema(definition[schema])


def _check_size(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if (size := len(json.dumps(tools))) > MAX_OPTION_CHARACTERS:
        raise ValueError(f"the tools have {size:,} characters; the limit is {MAX_OPTION_CHARACTERS:,}")
    return tools


OfferedTools = Annotated[
    list[Annotated[dict[str, Any], AfterValidator(check_tool)]],
    Field(min_length=1, max_length=MAX_TOOLS),
    AfterValidator(_check_size),
]
ResponseFormat = Annotated[dict[str, Any], AfterValidator(check_response_format)]
