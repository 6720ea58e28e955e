"""Schemas of arguments in forms other than JSON: their references, kinds and keywords."""

from types import NoneType
from typing import Any

from serving.engines.structured.grammar import GrammarInvalid
from serving.engines.structured.json_schema import Schema, resolve_reference

ANNOTATIONS = frozenset(
    {"$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType", "default"}
    | {"definitions", "deprecated", "description", "example", "examples", "nullable", "readOnly", "strict"}
    | {"title", "writeOnly"}
)
STRING_KEYWORDS = frozenset({"minLength", "maxLength", "pattern", "format"})
NUMBER_KEYWORDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
ARRAY_KEYWORDS = frozenset({"items", "minItems", "maxItems"})
OBJECT_KEYWORDS = frozenset({"properties", "required", "additionalProperties"})
KEYWORDS = {
    "string": STRING_KEYWORDS,
    "number": NUMBER_KEYWORDS,
    "integer": NUMBER_KEYWORDS,
    "array": ARRAY_KEYWORDS,
    "object": OBJECT_KEYWORDS,
    "boolean": frozenset(),
    "null": frozenset(),
}
TYPES = tuple(KEYWORDS)
# What the value of a keyword is, where a rule is made of it; `required` and `type` contain names.
VALUES: dict[str, tuple[type, ...]] = {
    "properties": (dict, NoneType),
    "required": (list, NoneType),
    "type": (str, list),
    "enum": (list,),
    "anyOf": (list,),
    "oneOf": (list,),
    "allOf": (list,),
    "pattern": (str,),
    "format": (str,),
    "minItems": (int,),
    "maxItems": (int,),
}
_ALL_KEYWORDS = frozenset().union(*KEYWORDS.values())
MAX_REFERENCES = 32
MAX_ALTERNATIVES = 256


def resolve(schema: Any, root: Schema) -> Any:
    """Return a schema with the references at its top resolved. Raises GrammarInvalid."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, dict):
            return schema
        _check_values(schema)
        if "$ref" not in schema:
            return schema
        reference = str(schema["$ref"])
        found = resolve_reference(root, reference) if reference.startswith("#") else None
        if found is None:
            raise GrammarInvalid(f"the reference {reference!r} names no part of the schema")
        others = {name: value for name, value in schema.items() if name != "$ref"}
        schema = {**found, **others} if isinstance(found, dict) else found
    raise GrammarInvalid("a reference refers to itself")


def alternatives(schema: Any, root: Schema) -> list[Schema]:
    """Return schemas of one type, constant or enumeration each, one of which a value must follow.

    Raises:
        GrammarInvalid: A reference names nothing, or the schema accepts nothing or too many alternatives.
    """
    found: list[Schema] = []
    open_schemas = [schema]
    for _ in range(MAX_ALTERNATIVES):
        if not open_schemas:
            return found
        one = resolve(open_schemas.pop(0), root)
        if one is False:
            raise GrammarInvalid("a schema accepts no value")
        if not isinstance(one, dict):
            one = {}
        if isinstance(members := one.get("allOf"), list):
            open_schemas.insert(0, _merge(one, members, root))
        elif isinstance(choices := one.get("anyOf", one.get("oneOf")), list):
            rest = {name: value for name, value in one.items() if name not in ("anyOf", "oneOf")}
            resolved = [resolve(choice, root) for choice in choices[:MAX_ALTERNATIVES]]
            open_schemas[:0] = [{**rest, **one} if isinstance(one, dict) else one for one in resolved]
        elif "const" in one or "enum" in one:
            found.append(one)
        else:
            types = one.get("type", _implied_type(one))
            found += [{**one, "type": name} for name in ([types] if isinstance(types, str) else types)]
    raise GrammarInvalid(f"a value has more than {MAX_ALTERNATIVES} alternatives")


def members(schema: Schema) -> dict[str, Any]:
    """Return the schemas of the members of an object, with those that only `required` names."""
    properties = schema.get("properties") or {}
    return {**properties, **{name: True for name in schema.get("required") or [] if name not in properties}}


def constants(schema: Schema) -> list[Any] | None:
    """Return the values of a constant or an enumeration; None for other schemas."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def value_types(schema: Any, root: Schema) -> frozenset[str]:
    """Return the types that values of a schema may have. Raises GrammarInvalid."""
    found: set[str] = set()
    for alternative in alternatives(schema, root):
        values = constants(alternative)
        found |= {alternative["type"]} if values is None else {type_of(value) for value in values}
    return frozenset(found)


def type_of(value: Any) -> str:
    """Return the type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    names = {float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def refuse_unknown_keywords(schema: Schema) -> None:
    """Raise GrammarInvalid for a keyword that no rule of `schema` would enforce."""
    known = ANNOTATIONS | {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
    # Keywords of other types restrict nothing, as in unions.
    unknown = sorted(set(schema) - known - _ALL_KEYWORDS)
    if unknown:
        raise GrammarInvalid(f"the keyword {unknown[0]!r} cannot be enforced in this form of calls")
    if (name := schema.get("type", "null")) not in KEYWORDS:
        raise GrammarInvalid(f"the type {name!r} is unknown")


def _check_values(schema: Schema) -> None:
    """Raise GrammarInvalid for a keyword whose value is of another kind than JSON Schema says."""
    for name in VALUES.keys() & schema.keys():
        value = schema[name]
        names = value if name in ("required", "type") and isinstance(value, list) else []
        if not isinstance(value, VALUES[name]) or not all(isinstance(one, str) for one in names):
            raise GrammarInvalid(f"the value of the keyword {name!r} is not one of JSON Schema")


def _implied_type(schema: Schema) -> str | tuple[str, ...]:
    for name in ("object", "array", "string"):
        if any(keyword in schema for keyword in KEYWORDS[name]):
            return name
    return "number" if any(keyword in schema for keyword in NUMBER_KEYWORDS) else TYPES


def _merge(schema: Schema, members: list[Any], root: Schema) -> Schema:
    """Return one schema for all of `allOf`. Raises GrammarInvalid where two differ."""
    merged = {name: value for name, value in schema.items() if name != "allOf"}
    for member in members:
        member = resolve(member, root)
        if not isinstance(member, dict):
            continue
        for name, value in member.items():
            if name == "properties" and name in merged:
                merged[name] = {**merged[name], **value}
            elif name == "required" and name in merged:
                merged[name] = [*merged[name], *value]
            elif name in merged and name not in ANNOTATIONS and merged[name] != value:
                raise GrammarInvalid("the keyword 'allOf' cannot be enforced in this form of calls")
            else:
                merged[name] = value
    return merged
