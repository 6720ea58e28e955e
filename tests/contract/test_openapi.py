"""The API's documentation is complete: every field and parameter is described, and examples are real.

Method: walk the OpenAPI document that the service publishes.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from app.main import create_app


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def list_properties(path: str, schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and schema of every property, also of nested objects."""
    if isinstance(schema, list):
        for item in schema:
            yield from list_properties(path, item)
    elif isinstance(schema, dict):
        for name, field in schema.get("properties", {}).items():
            yield f"{path}.{name}", field
            yield from list_properties(f"{path}.{name}", field)
        for key in ("items", "anyOf", "oneOf", "allOf", "additionalProperties"):
            yield from list_properties(path, schema.get(key))


def list_operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def test_every_field_is_described(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    fields = [field for name, schema in schemas.items() for field in list_properties(name, schema)]
    assert len(fields) > 600
    assert [path for path, field in fields if not field.get("description")] == []


def test_every_parameter_is_described(document: dict[str, Any]) -> None:
    parameters = [
        (f"{where} {parameter['name']}", parameter)
        for where, operation in list_operations(document)
        for parameter in operation.get("parameters", [])
    ]
    assert [name for name, parameter in parameters if not parameter.get("description")] == []


def test_every_response_with_a_schema_has_a_real_example(document: dict[str, Any]) -> None:
    missing = []
    for where, operation in list_operations(document):
        successes = [code for code in ("200", "201", "202") if code in operation["responses"]]
        contents = [operation["responses"][code].get("content", {}) for code in successes]
        schemas = [content["application/json"] for content in contents if "application/json" in content]
        if schemas and not any("example" in schema or "examples" in schema for schema in schemas):
            missing.append(where)
    assert missing == []
