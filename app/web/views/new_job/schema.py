"""The fields of a form, read from the JSON schema of a stage: kinds of inputs, descriptions and defaults."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from app.jobs.schemas import JobCreate
from trainers.configs import StageKind

# Fields that most jobs set, in the order of the form; the others are folded.
MOST_USED = (
    "preset", "base", "model", "baseline", "teacher", "dataset", "validation_dataset", "metrics", "rewards",
    "tasks", "evaluation", "against", "deployment", "tuning", "epochs", "max_steps", "batch_size",
    "learning_rate", "max_length", "max_new_tokens", "split", "recipe",
)  # fmt: skip
MOST_USED_PARTS = (("tuning", "rank"), ("split", "test"))
MAX_DEPTH = 2
JOB_FIELDS = ("priority", "queue", "reuse", "labels", "host")


class InputKind(StrEnum):
    """How a value is entered; the first letter of the name of its input."""

    text = "t"
    number = "n"
    choice = "c"  # One of some values, as JSON.
    json = "j"
    reference = "r"  # A text, or an object as JSON.
    presets = "p"  # Several names.


@dataclass(frozen=True)
class FormField:
    """A field of a form: its path below the stage, and what its schema says."""

    path: tuple[str, ...]
    kind: InputKind
    description: str
    default: Any
    is_required: bool
    options: tuple[Any, ...] = ()
    is_most_used: bool = False

    @property
    def name(self) -> str:
        """The path as people write it."""
        return ".".join(self.path)


@dataclass(frozen=True)
class StageForm:
    """The fields of a kind of stage."""

    kind: StageKind
    summary: str
    fields: tuple[FormField, ...]
    unions: Mapping[tuple[str, ...], tuple[str, str | None]] = field(default_factory=dict)
    """For each field with several forms: the member that decides which one it is, and its default."""


def stage_form(kind: StageKind, values: Mapping[str, Any]) -> StageForm:
    """Return the form of a stage; of a field with several forms, the form that the values choose."""
    schema = _stage_schema(kind)
    unions: dict[tuple[str, ...], tuple[str, str | None]] = {}
    fields = list(_list_fields(schema, schema.get("$defs", {}), (), values, unions, 0))
    order = {name: index for index, name in enumerate(MOST_USED)}
    fields.sort(key=lambda each: order.get(each.path[0], len(order)))
    return StageForm(kind, schema.get("description", "").partition("\n")[0], tuple(fields), unions)


def job_fields() -> list[FormField]:
    """Return the fields of the job itself, but its name and its stages."""
    schema = _job_schema()
    return [
        _make_field((name,), schema["properties"][name], schema["$defs"], is_required=False)
        for name in JOB_FIELDS
    ]


@cache
def summarize_stages() -> dict[StageKind, str]:
    """Return the kinds of stages, each with the first line of its description."""
    return {kind: _stage_schema(kind).get("description", "").partition("\n")[0] for kind in StageKind}


@cache
def _stage_schema(kind: StageKind) -> dict[str, Any]:
    return kind.stage.config.model_json_schema()


@cache
def _job_schema() -> dict[str, Any]:
    return JobCreate.model_json_schema()


def _list_fields(
    schema: Mapping[str, Any],
    definitions: Mapping[str, Any],
    prefix: tuple[str, ...],
    values: Any,
    unions: dict[tuple[str, ...], tuple[str, str | None]],
    depth: int,
) -> Iterator[FormField]:
    required = schema.get("required", ())
    for name, described in schema.get("properties", {}).items():
        if prefix == () and name == "stage":
            continue
        path, part = (*prefix, name), _resolve(described, definitions)
        value = values.get(name) if isinstance(values, Mapping) else None
        if "discriminator" in part and depth < MAX_DEPTH and not isinstance(value, list):
            is_nullable = any(each.get("type") == "null" for each in described.get("anyOf", ()))
            yield from _list_union(part, definitions, path, value, unions, depth, is_nullable=is_nullable)
        elif part.get("type") == "object" and part.get("properties") and depth < MAX_DEPTH:
            yield from _list_fields(part, definitions, path, value, unions, depth + 1)
        else:
            is_required = name in required and not depth
            yield _make_field(path, described, definitions, is_required=is_required)


def _list_union(
    part: Mapping[str, Any],
    definitions: Mapping[str, Any],
    path: tuple[str, ...],
    value: Any,
    unions: dict[tuple[str, ...], tuple[str, str | None]],
    depth: int,
    *,
    is_nullable: bool,
) -> Iterator[FormField]:
    """Yield the choice of the form, and the fields of the chosen one, by default the first or none."""
    mapping, name = part["discriminator"]["mapping"], part["discriminator"]["propertyName"]
    names = [_member_name(each["$ref"], mapping) for each in part["oneOf"]]
    chosen = value.get(name) if isinstance(value, Mapping) else None
    default = None if is_nullable else names[0]
    chosen = chosen if isinstance(chosen, str) and chosen in mapping else default
    unions[path] = name, default
    description = part.get("description", "")
    yield FormField(
        (*path, name), InputKind.choice, description, default, False, tuple(names), path[0] in MOST_USED
    )
    if chosen is None:
        return
    member = _resolve({"$ref": mapping[chosen]}, definitions)
    without = {key: each for key, each in member.get("properties", {}).items() if key != name}
    yield from _list_fields({**member, "properties": without}, definitions, path, value, unions, depth + 1)


def _make_field(
    path: tuple[str, ...], described: Mapping[str, Any], definitions: Mapping[str, Any], *, is_required: bool
) -> FormField:
    part = _resolve(described, definitions)
    kind, options = _choose_input(part, definitions)
    if path == ("preset",):
        kind = InputKind.presets
    is_most_used = is_required or (path[0] in MOST_USED and len(path) == 1) or path in MOST_USED_PARTS
    return FormField(
        path, kind, part.get("description", ""), part.get("default"), is_required, options, is_most_used
    )


def _choose_input(
    part: Mapping[str, Any], definitions: Mapping[str, Any]
) -> tuple[InputKind, tuple[Any, ...]]:
    parts = [_resolve(each, definitions) for each in part.get("anyOf", [part])]
    parts = [each for each in parts if each.get("type") != "null"]
    options = [option for each in parts for option in _list_options(each)]
    types = {each.get("type") for each in parts}
    if options and all(_list_options(each) for each in parts):
        return InputKind.choice, tuple(options)
    if types <= {"integer", "number"}:
        return InputKind.number, ()
    if types == {"string"}:
        return InputKind.text, ()
    has_text = any(
        "string" in (each.get("type"), *(inner.get("type") for inner in each.get("anyOf", [])))
        for each in parts
    )
    return (InputKind.reference if has_text else InputKind.json), ()


def _list_options(part: Mapping[str, Any]) -> list[Any]:
    if part.get("type") == "boolean":
        return [True, False]
    return list(part.get("enum", [part["const"]] if "const" in part else []))


def _resolve(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part without references to definitions, and of `X or null` the schema of X."""
    resolved = dict(part)
    while "$ref" in resolved:
        named = definitions[resolved.pop("$ref").rpartition("/")[2]]
        resolved = {**named, **resolved}
    given = [each for each in resolved.get("anyOf", []) if each.get("type") != "null"]
    if len(given) == 1 and "anyOf" in resolved:
        rest = {key: value for key, value in resolved.items() if key != "anyOf"}
        return {**_resolve(given[0], definitions), **rest}
    return resolved


def _member_name(reference: str, mapping: Mapping[str, str]) -> str:
    return next(name for name, named in mapping.items() if named == reference)


def encode_option(value: Any) -> str:
    """Return a value as that of an option; see InputKind.choice."""
    return json.dumps(value)
