"""The documentation of forms: their bodies are read as they arrive, and FastAPI documents what it parses."""

from collections.abc import Mapping, Sequence
from typing import Any


def multipart_form(
    required: Sequence[str], properties: Mapping[str, Any], encoding: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return OpenAPI's description of a form with these fields, as JSON schemas by their names."""
    schema = {"type": "object", "required": [*required], "properties": {**properties}}
    content = {"schema": schema} | ({"encoding": {**encoding}} if encoding else {})
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}
