"""The client agrees with the API's document, is light, and has one class under its two names.

Method: compare the fields of every view with its schema, and import the package in a new process.
"""

import inspect
import json
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
import typer

import app.client
import app.client.views
import tunesmith
from app.client.commands.program import cli
from app.client.views.base import ApiView
from tests.conftest import ROOT

SCHEMAS = json.loads((ROOT / "docs/reference/openapi.json").read_text())["components"]["schemas"]
HEAVY = {
    "sqlmodel",
    "sqlalchemy",
    "fastapi",
    "torch",
    "transformers",
    "celery",
    "alembic",
    "app.main",
    "app.settings",
}


def find_views() -> dict[str, type[ApiView]]:
    modules = [
        import_module(f"app.client.views.{one.name}")
        for one in pkgutil.iter_modules(app.client.views.__path__)
    ]
    classes = [found for module in modules for _, found in inspect.getmembers(module, inspect.isclass)]
    return {view.__name__: view for view in classes if issubclass(view, ApiView) and view.api_schema}


def kinds_of(schema: dict[str, Any], schemas: dict[str, Any]) -> set[str]:
    """Return the JSON types of a schema, with its references and alternatives resolved."""
    if "$ref" in schema:
        return kinds_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return set().union(*(kinds_of(one, schemas) for one in options))
    kind = schema.get("type", "string" if "enum" in schema or "const" in schema else "any")
    return {kind}


@pytest.mark.parametrize(("name", "view"), find_views().items())
def test_a_view_has_the_fields_of_its_schema(name: str, view: type[ApiView]) -> None:
    assert view.api_schema is not None
    ours, theirs = view.model_json_schema(), SCHEMAS[view.api_schema]
    message = f"give app.client.views the fields of {view.api_schema}"
    assert set(ours["properties"]) == set(theirs["properties"]), message
    for field, schema in theirs["properties"].items():
        found = kinds_of(ours["properties"][field], ours.get("$defs", {}))
        # What a list leaves out may be null in addition.
        assert found - {"null"} == kinds_of(schema, SCHEMAS) - {"null"}, field
        assert "null" in found or "null" not in kinds_of(schema, SCHEMAS), field


def test_a_field_of_a_newer_server_is_kept() -> None:
    fault = tunesmith.DataFault.model_validate({"code": "new", "message": "m", "severity": 3})
    assert fault.model_dump()["severity"] == 3


def test_the_import_is_light() -> None:
    program = "import json, sys, tunesmith; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    loaded = set(json.loads(found.stdout))
    assert HEAVY & loaded == set()
    # The configs take longer than the rest, and plain mappings do as well.
    assert not any(name.startswith("trainers") for name in loaded)


def test_a_class_is_the_same_under_both_names() -> None:
    assert all(getattr(tunesmith, name) is getattr(app.client, name) for name in app.client.__all__)
    assert set(tunesmith.__all__) == set(app.client.__all__)


def test_the_guide_has_every_command() -> None:
    guide = (ROOT / "docs/guides/command-line.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(cli).commands  # type: ignore[attr-defined] # a group has commands
    nested = [f"{name} {inner}" for name in ("data", "get") for inner in commands[name].commands]
    missing = [name for name in [*commands, *nested] if not re.search(rf"`[^`]*\b{name}\b", guide)]
    assert missing == []
