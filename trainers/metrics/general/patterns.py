"""Form of a response: a regular expression, or JSON that fulfils a schema."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from trainers.configs.metrics.general import JsonSchema, RegularExpression
from trainers.configs.parsing.json_schema import SchemaCheck, compile_schema
from trainers.configs.parsing.linear_pattern import LinearPattern
from trainers.metrics.exact import share_of
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.metrics.signatures import short_hash

_CODE_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


class RegularExpressionMetric:
    """Share of the rows whose response matches the pattern."""

    def __init__(self, config: RegularExpression) -> None:
        self._config = config
        self._pattern = None if config.pattern is None else self._compile(config.pattern)

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return why the row's own pattern cannot be used."""
        try:
            self._pattern_of(row)
        except ValueError as error:
            return f"has no pattern to match: {error}"
        return None

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Search the first response of each row."""
        hits = [
            self._pattern_of(row).search(row.response.strip() if self._config.whole else row.response)
            for row in rows
        ]
        pattern = self._config.pattern
        source = f"field:{self._config.pattern_field}" if pattern is None else f"hash:{short_hash(pattern)}"
        return share_of(
            hits,
            f"regular_expression|{source}|whole:{str(self._config.whole).lower()}|engine:rust-regex",
        )

    def _pattern_of(self, row: EvaluatedRow) -> LinearPattern:
        if self._pattern is not None:
            return self._pattern
        name = str(self._config.pattern_field)
        pattern = row.fields.get(name)
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"the field {name!r} must contain a pattern")
        return self._compile(pattern)

    def _compile(self, pattern: str) -> LinearPattern:
        return LinearPattern(f"^(?:{pattern})$" if self._config.whole else pattern)


class JsonSchemaMetric:
    """Share of the rows whose response is JSON that fulfils the schema."""

    def __init__(self, config: JsonSchema) -> None:
        self._config = config
        self._check = None if config.json_schema is None else compile_schema(config.json_schema)

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return why the row's own schema cannot be used."""
        try:
            self._check_of(row)
        except ValueError as error:
            return f"has no schema to validate with: {error}"
        return None

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Validate the first response of each row; count why others fail."""
        outcomes = [self._validate(row) for row in rows]
        counts = Counter(outcomes)
        schema = self._config.json_schema
        source = (
            f"field:{self._config.schema_field}"
            if schema is None
            else f"hash:{short_hash(json.dumps(schema, sort_keys=True))}"
        )
        fence = "allowed" if self._config.allow_code_fence else "refused"
        return share_of(
            [outcome == "valid" for outcome in outcomes],
            f"json_schema|{source}|fence:{fence}|version:jsonschema-rs-{version('jsonschema-rs')}",
            {"not_json": counts["not_json"], "not_valid": counts["not_valid"]},
        )

    def _validate(self, row: EvaluatedRow) -> str:
        try:
            value = parse_json(row.response, allow_code_fence=self._config.allow_code_fence)
        except ValueError:
            return "not_json"
        return "valid" if self._check_of(row).is_valid(value) else "not_valid"

    def _check_of(self, row: EvaluatedRow) -> SchemaCheck:
        if self._check is not None:
            return self._check
        name = str(self._config.schema_field)
        if name not in row.fields:
            raise ValueError(f"the field {name!r} is missing")
        schema = row.fields[name]
        # A schema as a JSON string, as some data sets store it.
        return compile_schema(json.loads(schema) if isinstance(schema, str) else schema)


def parse_json(text: str, *, allow_code_fence: bool = False) -> Any:
    """Parse a text that contains one JSON value and nothing else; raises ValueError.

    Unlike `json.loads` it refuses NaN and Infinity, which are not JSON, and an object that repeats a key.
    """
    text = text.strip()
    if allow_code_fence and (fenced := _CODE_FENCE.fullmatch(text)) is not None:
        text = fenced[1]
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_make_object)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key of an object is repeated")
    return value
