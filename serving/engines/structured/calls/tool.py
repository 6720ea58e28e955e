"""A function that a model may call."""

from dataclasses import dataclass
from typing import Any

from serving.engines.structured.json_schema import Schema, json_rule


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `definition` is what its chat template renders."""

    name: str
    parameters: Schema
    is_strict: bool
    definition: dict[str, Any]

    def json_rule(self, schema: Schema, compact: bool) -> str:
        """Return the rule of JSON for a schema among the parameters.

        Keywords that cannot be enforced count in strict tools only.
        """
        return json_rule(schema, compact=compact, lenient=not self.is_strict)
