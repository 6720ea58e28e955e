"""Random JSON schemas of the kinds that libraries of structured output send."""

import random
from typing import Any

Schema = dict[str, Any]

NAMES = ["name", "age", "city", "tags", "이름", "value", "id", "unit", "note", "a b"]
LEAVES = ["string", "enum", "integer", "number", "boolean", "null", "const"]
# A recursive schema would be followed for ever by a model that prefers to open a brace.
DEFINITIONS: Schema = {
    "Label": {"type": "string", "maxLength": 8},
    "Node": {
        "type": "object",
        "properties": {
            "label": {"$ref": "#/$defs/Label"},
            "next": {"anyOf": [{"$ref": "#/$defs/Label"}, {"type": "null"}]},
        },
        "required": ["label", "next"],
        "additionalProperties": False,
    },
}
STRINGS: list[Schema] = [
    {"type": "string", "maxLength": 20},
    {"type": "string", "minLength": 2, "maxLength": 9},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
]
NUMBERS: dict[str, list[Schema]] = {
    "integer": [{"type": "integer", "minimum": -3, "maximum": 120}, {"type": "integer", "maximum": 9}],
    "number": [{"type": "number", "minimum": 0.5, "maximum": 0.75}],
}


def random_schema(rng: random.Random) -> Schema:
    """Return the schema of an object."""
    return {**_object(rng, 2), "$defs": DEFINITIONS}


def _value(rng: random.Random, depth: int) -> Schema:
    kind = rng.choice([*LEAVES, "object", "object", "array", "anyOf", "ref"] if depth else LEAVES)
    if kind == "object":
        return _object(rng, depth - 1)
    if kind == "array":
        minimum = rng.randint(0, 2)
        items = _value(rng, depth - 1)
        return {"type": "array", "items": items, "minItems": minimum, "maxItems": minimum + rng.randint(0, 2)}
    if kind == "anyOf":
        return {"anyOf": [_value(rng, depth - 1) for _ in range(2)]}
    if kind == "ref":
        return {"$ref": "#/$defs/Node"}
    if kind == "string":
        return rng.choice(STRINGS)
    if kind in NUMBERS:
        return rng.choice(NUMBERS[kind])
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", 'q"uote', "파랑", 1, 2.5, None, True], 3)}
    return {"const": rng.choice(["fixed", 7, False])} if kind == "const" else {"type": kind}


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }
