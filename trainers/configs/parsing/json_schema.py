"""JSON schemas of users: bounded, without references to anything outside, and with linear patterns only."""

import json
from collections.abc import Iterator
from typing import Any, Protocol

MAX_SCHEMA_CHARACTERS = 65_536
# Of values from users: what is deeper cannot be written as a response.
MAX_NESTING = 64
_REFERENCES = {"$ref", "$dynamicRef", "$recursiveRef"}


class SchemaCheck(Protocol):
    """A compiled schema."""

    def is_valid(self, instance: Any) -> bool:
        """Return whether a value fulfils the schema."""
        ...

    def iter_errors(self, instance: Any) -> Iterator[Any]:
        """Yield the faults of a value, each with its `message`."""
        ...


def compile_schema(schema: Any) -> SchemaCheck:
    """Return a check of values against a schema of drafts 4 to 2020-12; raises ValueError.

    `jsonschema-rs` searches patterns in linear time, unlike `jsonschema`, which uses Python's `re`.
    """
    import jsonschema_rs

    if not isinstance(schema, dict | bool):
        raise ValueError(f"a schema is an object, not {type(schema).__name__}")
    try:
        size = len(json.dumps(schema))
        remote = next((one for one in _list_references(schema) if not one.startswith("#")), None)
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None
    if size > MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"the schema has {size:,} characters; the limit is {MAX_SCHEMA_CHARACTERS:,}")
    if remote is not None:
        raise ValueError(
            f"the schema refers to {remote[:100]!r}: include the definition under `$defs`, and refer to it "
            "by `#/$defs/NAME`"
        )
    try:
        check: SchemaCheck = jsonschema_rs.validator_for(
            schema, pattern_options=jsonschema_rs.RegexOptions(), retriever=_refuse_retrieval
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise ValueError(f"the schema is not valid: {reason.splitlines()[0][:500]}") from None
    return check


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Return whether a JSON value has arrays or objects at more levels, without recursion."""
    waiting = [(value, 1)]
    while waiting:
        one, level = waiting.pop()
        if not isinstance(one, dict | list):
            continue
        if level > levels:
            return True
        waiting += [(member, level + 1) for member in (one.values() if isinstance(one, dict) else one)]
    return False


def _list_references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in _REFERENCES and isinstance(value, str):
                yield value
            yield from _list_references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _list_references(item)


def _refuse_retrieval(uri: str) -> Any:
    raise ValueError(f"{uri[:100]} is not part of the schema")
