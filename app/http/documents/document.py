"""Corrections of the OpenAPI document that FastAPI makes, so that clients and readers can rely on it."""

from collections.abc import Iterator
from typing import Any


def correct_document(schema: dict[str, Any]) -> None:
    """Correct summaries, optional parameters and unions of a document."""
    for operation in (each for item in schema["paths"].values() for each in item.values()):
        # FastAPI writes each word of a summary with a capital.
        operation["summary"] = operation["summary"].capitalize()
        for parameter in operation.get("parameters", []):
            _remove_null(parameter["schema"])
    _require_discriminators(schema)


def _require_discriminators(schema: dict[str, Any]) -> None:
    """Require the field that selects a variant, such as `stage`; it has a default in each variant alone."""
    schemas = schema["components"]["schemas"]
    for union in _find_unions(schema):
        name = union["propertyName"]
        for reference in union["mapping"].values():
            variant = schemas[reference.rpartition("/")[2]]
            variant["required"] = [name, *(other for other in variant.get("required", []) if other != name)]


def _find_unions(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the discriminator of each union of schemas."""
    if isinstance(node, list):
        for item in node:
            yield from _find_unions(item)
    elif isinstance(node, dict):
        if isinstance(union := node.get("discriminator"), dict) and "mapping" in union:
            yield union
        for value in node.values():
            yield from _find_unions(value)


def _remove_null(schema: dict[str, Any]) -> None:
    """Remove null from an optional parameter: in a URL or a header it can be absent, but not null."""
    variants = [variant for variant in schema.get("anyOf", []) if variant.get("type") != "null"]
    if len(variants) == 1:
        del schema["anyOf"]
        schema |= variants[0]
