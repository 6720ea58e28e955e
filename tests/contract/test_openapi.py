"""The API's documentation is complete: every field and parameter is described, and examples are real.

Method: walk the OpenAPI document that the service publishes.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import TypeAdapter

from app.http.error_responses import ErrorResponse
from app.http.response_examples import ERRORS, PATH, load_response_examples
from app.openai_api.application import create_openai_app
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


def test_every_name_in_a_request_is_text_that_cannot_reorder_what_is_beside_it() -> None:
    names, checked = {"name", "filename", "suffix", "labels"}, 0
    for described in (built_app().openapi(), create_openai_app().openapi()):
        for where, schema in list_request_schemas(described):
            for name in names & schema.get("properties", {}).keys():
                patterns = re.findall(r'"pattern": "(.*?)"', json.dumps(schema["properties"][name]))
                assert patterns or where == "CompletionRequest", f"{where}.{name} has no pattern"
                matching = [each for each in patterns if re.fullmatch(json.loads(f'"{each}"'), "a\u202eb")]
                assert matching == [], f"{where}.{name}"
                checked += 1
    assert checked > 20


def list_request_schemas(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas that bodies of requests can have, with their names."""
    definitions, seen = described["components"]["schemas"], set()
    waiting: list[tuple[str, Any]] = [
        (path, operation["requestBody"])
        for path, operations in described["paths"].items()
        for operation in operations.values()
        if "requestBody" in operation
    ]
    while waiting:
        where, part = waiting.pop()
        if isinstance(part, list):
            waiting += [(where, each) for each in part]
        elif isinstance(part, dict) and "$ref" in part:
            name = part["$ref"].rpartition("/")[2]
            if name not in seen:
                seen.add(name)
                waiting.append((name, definitions[name]))
        elif isinstance(part, dict):
            yield where, part
            waiting += [(where, each) for key, each in part.items() if key not in ("example", "examples")]
