"""JSON schemas as rules of a grammar, and the bounds within which they are compiled."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]

MAX_SCHEMA_CHARACTERS = 2**18
# The compiler recurses into every reference: about 1,000 of them in a chain of objects, three levels each,
# overflow a stack of 8 MiB. `grammar.COMPILER_STACK_BYTES` is eight times that.
MAX_RESOLVED_DEPTH = 2000
# Each alternative repeats the keywords beside it, so that a short schema may have very long rules, and the
# compiler takes many times their size.
MAX_RULE_CHARACTERS = 2**22
ANY_OBJECT: Schema = {"type": "object"}
# A small model may otherwise generate white space up to its limit of tokens. One space, as in Python's JSON,
# is what models are trained to write.
COMPACT = {"whitespace_flexible": False, "item_separator": r",\x20?", "key_separator": r":\x20?"}
FLEXIBLE = {"whitespace_flexible": True}


class SchemaTooComplex(ValueError):
    """A schema that exceeds a bound; the message names the bound and the value found."""


def json_rule(schema: Schema, *, compact: bool, lenient: bool = False) -> str:
    """Return the body of a rule of a Lark grammar for JSON that a schema accepts.

    With `compact`, white space is limited to one space after a comma or colon. With `lenient`, keywords that
    cannot be enforced are ignored instead of refused.

    Raises:
        SchemaTooComplex: The schema exceeds a bound.
    """
    options = {**(COMPACT if compact else FLEXIBLE), "lenient": lenient, "coerce_one_of": lenient}
    # A schema's own options would otherwise take their place.
    text = json.dumps({**schema, "x-guidance": options})
    check_bounds(schema)
    return f"%json {text}"


def check_bounds(schema: Schema) -> None:
    """Raise SchemaTooComplex for a schema that exceeds a bound."""
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA_CHARACTERS:
        raise SchemaTooComplex(f"it has {size:,} characters, and may have {MAX_SCHEMA_CHARACTERS:,}")
    depth = resolved_depth(schema)
    if depth > MAX_RESOLVED_DEPTH:
        raise SchemaTooComplex(
            f"its levels and those of its references are {depth:,}, and may be {MAX_RESOLVED_DEPTH:,}"
        )


def check_size(size: int) -> None:
    """Raise SchemaTooComplex for rules that have so many characters."""
    if size > MAX_RULE_CHARACTERS:
        raise SchemaTooComplex(
            f"its rules have {size:,} characters or more with all alternatives, and may have "
            f"{MAX_RULE_CHARACTERS:,}"
        )


def resolved_depth(schema: Schema) -> int:
    """Return an upper bound of the levels of a schema with each of its references resolved once."""
    # One place may be written in many ways.
    references = {unquote(name) for node in _objects(schema) if isinstance(name := node.get("$ref"), str)}
    return _depth(schema) + sum(_depth(resolve_reference(schema, reference)) for reference in references)


def resolve_reference(schema: Schema, reference: str) -> Any:
    """Return the part of a schema that a JSON pointer names; None if there is none."""
    found: Any = schema
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _objects(item)


def _depth(value: Any) -> int:
    """Return the levels of a JSON value; parsers of requests limit them to less than Python's own limit."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
