"""The API's documentation is complete: every field and parameter is described, and examples are real.

Method: walk the OpenAPI document that the service publishes.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter

from app.http.error_responses import ErrorResponse
from app.http.response_examples import ERRORS, PATH, load_response_examples
from tests.application import built_app


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return built_app().openapi()


def validate(model: Any, example: Any) -> Any:
    """Return an example as its model would serialize it; raise ValidationError if it does not fit."""
    adapter = TypeAdapter(model)
    return adapter.dump_python(adapter.validate_python(example), mode="json", exclude_unset=True)


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
    contents = [
        (f"{where} {status}", response["content"]["application/json"])
        for where, operation in list_operations(document)
        for status, response in operation["responses"].items()
        if "application/json" in response.get("content", {})
    ]
    assert len(contents) > 90
    assert [where for where, content in contents if not content.keys() & {"example", "examples"}] == []


def test_every_recorded_response_is_one_that_its_endpoint_can_return() -> None:
    examples = load_response_examples()
    errors = examples.pop(ERRORS)
    routes = [context.original_route for context in iter_route_contexts(built_app().routes)]
    models = {route.name: route.response_model for route in routes if isinstance(route, APIRoute)}
    for name, example in examples.items():
        assert validate(models[name], example) == example, name
    for name, error in errors.items():
        assert ErrorResponse.model_validate(error["value"]), name


def test_the_errors_show_a_missing_key_an_unknown_id_a_conflict_and_a_malformed_request() -> None:
    summaries = [error["summary"][:3] for error in load_response_examples()[ERRORS].values()]
    assert summaries == ["401", "404", "409", "422"]


def test_null_stays_in_the_example_that_removes_a_limit(document: dict[str, Any]) -> None:
    body = document["paths"]["/api/v1/keys/{key_id}"]["patch"]["requestBody"]["content"]["application/json"]
    assert body["examples"]["unlimited"]["value"] == {"requests_per_minute": None}


def test_examples_name_no_temporary_folder() -> None:
    text = PATH.read_text(encoding="utf-8")
    assert not any(folder in text for folder in ("/tmp/", "/home/", "/Users/", "/root/"))
