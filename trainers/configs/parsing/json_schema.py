"""JSON schemas of users: bounded, without references to anything outside, and with linear patterns only."""

import json
from collections.abc import Iterator
from typing import Any

from trainers.configs.parsing.schema_cost import MAX_APPLICATIONS, SchemaCost

MAX_SCHEMA_CHARACTERS = 65_536
# Of values from users: what is deeper cannot be written as a response.
MAX_NESTING = 64
# A step is a part of the schema at a place of the value: some 50 ns.
MAX_STEPS = 50_000_000
_REFERENCES = {"$ref", "$dynamicRef", "$recursiveRef"}


class SchemaCheck:
    """A compiled schema, which refuses a value whose places times the parts for each are too many."""

    def __init__(self, validator: Any, cost: SchemaCost) -> None:
        self._validator, self._cost = validator, cost

    def is_valid(self, value: Any) -> bool:
        """Return whether a value fulfils the schema."""
        return self._explain_cost(value) is None and bool(self._validator.is_valid(value))

    def explain(self, value: Any) -> str | None:
        """Return the first fault of a value; None if it fulfils the schema."""
        import jsonschema_rs

        if (reason := self._explain_cost(value)) is not None:
            return reason
        try:
            # A list of all faults can be as long as the steps.
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return str(error.message)
        return None

    def _explain_cost(self, value: Any) -> str | None:
        n_places, depth = measure_nesting(value)
        steps = n_places * self._cost.applications(depth)
        if steps <= MAX_STEPS:
            return None
        return (
            f"it has {n_places:,} values at {depth} levels, for which the schema needs {steps:,} steps; the "
            f"limit is {MAX_STEPS:,}"
        )


def compile_schema(schema: Any) -> SchemaCheck:
    """Return a check of values against a schema of drafts 4 to 2020-12; raises ValueError.

    `jsonschema-rs` searches patterns in linear time, unlike `jsonschema`, which uses Python's `re`. The steps
    that it needs are bounded before it begins: without that, a schema of a kilobyte can take years.
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
    cost = SchemaCost(schema)
    if (applications := cost.applications(0)) > MAX_APPLICATIONS:
        raise ValueError(
            f"the schema applies {applications:,} of its parts to one value, because they refer to each "
            f"other; the limit is {MAX_APPLICATIONS:,}"
        )
    try:
        validator = jsonschema_rs.validator_for(
            schema, pattern_options=jsonschema_rs.RegexOptions(), retriever=_refuse_retrieval
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        reason = getattr(error, "message", None) or str(error)
        raise ValueError(f"the schema is not valid: {reason.splitlines()[0][:500]}") from None
    return SchemaCheck(validator, cost)


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Return whether a JSON value has arrays or objects at more levels."""
    return measure_nesting(value)[1] > levels


def measure_nesting(value: Any) -> tuple[int, int]:
    """Return the number of values in a JSON value, itself included, and of levels; without recursion."""
    n_values, levels = 1, 0
    current = [value]
    while current := [one for one in current if isinstance(one, dict | list)]:
        levels += 1
        current = [member for one in current for member in (one.values() if isinstance(one, dict) else one)]
        n_values += len(current)
    return n_values, levels


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
