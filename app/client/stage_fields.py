"""The fields of a stage for people and agents: names, types, defaults and meanings, from its JSON schema."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from app.client.api.errors import ClientError

# A part with more fields than these is described by itself: `tunesmith stage sft FIELD`.
MAX_PART_FIELDS = 20
BOUNDS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
SENTENCE_END = re.compile(r"(?<=\.)\s")
MAX_MEANING_CHARACTERS = 150
MAX_SHOWN_BOUND = 1_000_000


class StageUnknown(ClientError):
    """There is no such stage, or it has no such field."""


class StageField(BaseModel):
    """A field of a stage, or with dots, of an object in it."""

    name: str
    type: str
    default: Any = None
    required: bool = False
    meaning: str
    """The first sentence of the description."""


def list_stages() -> dict[str, str]:
    """Return the kinds of stages, each with the first line of its description."""
    from trainers.configs.stage_table import StageKind

    return {kind.value: (kind.stage.config.__doc__ or "").partition("\n")[0] for kind in StageKind}


def read_schema(stage: str, field: str | None = None) -> dict[str, Any]:
    """Return the JSON schema of a stage or of one of its fields, with the definitions that it needs.

    After a dot, a form of an object or of the objects in a list: `metrics.bleu`. Raises StageUnknown.
    """
    from trainers.configs.stage_table import StageKind

    if stage not in list(StageKind):
        raise StageUnknown(f"There is no stage {stage!r}.", f"Expected one of {', '.join(StageKind)}.")
    schema = StageKind(stage).stage.config.model_json_schema()
    if field is None:
        return schema
    definitions, (name, _, form) = schema.get("$defs", {}), field.partition(".")
    found = _choose(schema["properties"], name, f"The stage {stage} has no field")
    if form:
        found = _choose(_find_forms(found, definitions), form, f"The field {name} of {stage} has no part")
    needed = _find_needed(found, definitions)
    return {**found, **({"$defs": needed} if needed else {})}


def list_forms(schema: Mapping[str, Any]) -> list[str]:
    """Return the forms of the objects that a field's schema describes, which `read_schema` returns alone."""
    return list(_find_forms(schema, schema.get("$defs", {})))


def _choose(parts: Mapping[str, Any], name: str, problem: str) -> dict[str, Any]:
    if name not in parts:
        raise StageUnknown(f"{problem} {name!r}.", f"Expected one of {', '.join(parts) or 'none'}.")
    return dict(parts[name])


def _find_forms(described: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the forms of an object by the value that decides; of one form, its fields."""
    part = _resolve(described, definitions)
    for each in (part, *(_resolve(one, definitions) for one in part.get("anyOf", ()))):
        if each.get("type") == "array":
            return _find_forms(each.get("items", {}), definitions)
        if "discriminator" in each:
            named = each["discriminator"]["mapping"]
            return {tag: _resolve({"$ref": reference}, definitions) for tag, reference in named.items()}
    return dict(part.get("properties", {}))


def list_fields(stage: str) -> list[StageField]:
    """Return the fields of a stage, those without a default first; raises StageUnknown."""
    schema = read_schema(stage)
    fields = _list_fields(schema, schema.get("$defs", {}), "")
    return sorted((each for each in fields if each.name != "stage"), key=lambda each: not each.required)


def _list_fields(
    part: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str
) -> Iterator[StageField]:
    required = part.get("required", ())
    for name, described in part.get("properties", {}).items():
        resolved = _resolve(described, definitions)
        description = resolved.get("description", "").replace("\n", " ")
        yield StageField(
            name=prefix + name,
            type=_describe_type(described, definitions),
            default=_default_of(described, resolved, definitions, is_required=name in required),
            required=name in required and not prefix,
            meaning=_first_sentence(description),
        )
        if not prefix:
            yield from _list_members(resolved, definitions, f"{name}.")


def _first_sentence(text: str) -> str:
    sentence = SENTENCE_END.split(text, maxsplit=1)[0]
    return sentence if len(sentence) <= MAX_MEANING_CHARACTERS else sentence[:MAX_MEANING_CHARACTERS] + "…"


def _default_of(
    described: Mapping[str, Any],
    resolved: Mapping[str, Any],
    definitions: Mapping[str, Any],
    *,
    is_required: bool,
) -> Any:
    """Return the default; of an object with several forms, the first form."""
    tag = resolved.get("discriminator", {}).get("propertyName")
    if is_required or "default" in described or tag is None:
        return described.get("default")
    return {tag: _tag_of(_resolve(resolved["oneOf"][0], definitions), tag)}


def _list_members(
    part: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str
) -> Iterator[StageField]:
    """Yield the fields of an object; of one with several forms, each field with the forms that have it."""
    tag = part.get("discriminator", {}).get("propertyName")
    members = [_resolve(each, definitions) for each in part.get("oneOf", [])] if tag else [part]
    found: dict[str, StageField] = {}
    forms: dict[str, list[str]] = {}
    for member in members:
        for each in _list_fields(member, definitions, prefix):
            if tag is not None and each.name == prefix + tag:
                continue
            found.setdefault(each.name, each)
            forms.setdefault(each.name, []).append(str(_tag_of(member, tag)))
    if len(found) > MAX_PART_FIELDS:
        return
    for name, each in found.items():
        is_of_all = len(forms[name]) == len(members)
        yield (
            each
            if is_of_all
            else each.model_copy(update={"meaning": f"({', '.join(forms[name])}) {each.meaning}"})
        )


def _describe_type(described: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a type as people write it, such as `integer ≥ 1`, `lora | full` or `list of text`."""
    part = _resolve(described, definitions)
    if options := part.get("anyOf"):
        kinds = [_describe_type(each, definitions) for each in options if each.get("type") != "null"]
        return " | ".join(dict.fromkeys(kinds))
    if "enum" in part or "const" in part:
        return " | ".join(map(_show, part.get("enum", [part.get("const")])))
    if (tag := part.get("discriminator", {}).get("propertyName")) is not None:
        names = [str(_tag_of(_resolve(each, definitions), tag)) for each in part["oneOf"]]
        return f"object with `{tag}`: {' | '.join(names)}"
    match part.get("type"):
        case "array":
            return f"list of {_describe_type(part.get('items', {}), definitions)}"
        case "object":
            names = list(part.get("properties", {}))
            return f"object with {', '.join(names)}" if 0 < len(names) <= 4 else "object"
        case "string":
            return "text"
        case "integer" | "number" as kind:
            bounds = [
                text.format(_show(part[key])) for key, text in BOUNDS.items() if _is_shown(part.get(key))
            ]
            return " ".join([kind, *bounds])
        case kind:
            return str(kind or "any value")


def _is_shown(bound: Any) -> bool:
    return bound is not None and bound <= MAX_SHOWN_BOUND


def _tag_of(member: Mapping[str, Any], tag: str | None) -> Any:
    return None if tag is None else member["properties"][tag].get("const")


def _resolve(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part without a reference at its top, and of `X or null` the schema of X."""
    resolved = dict(part)
    while "$ref" in resolved:
        resolved = {**definitions[resolved.pop("$ref").rpartition("/")[2]], **resolved}
    given = [each for each in resolved.get("anyOf", []) if each.get("type") != "null"]
    if len(given) == 1:
        rest = {key: value for key, value in resolved.items() if key != "anyOf"}
        return {**_resolve(given[0], definitions), **rest}
    return resolved


def _find_needed(part: Any, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definitions that a part refers to, directly and through each other."""
    needed: dict[str, Any] = {}
    waiting = [part]
    while waiting:
        for name in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(waiting.pop())):
            if name not in needed:
                needed[name] = definitions[name]
                waiting.append(definitions[name])
    return needed


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
