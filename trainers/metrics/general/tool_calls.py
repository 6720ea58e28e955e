"""Agreement of a response's tool calls with the reference's."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.configs.metrics.general import ToolCalls
from trainers.metrics.exact import share_of
from trainers.metrics.general.patterns import parse_json
from trainers.metrics.metric import EvaluatedRow, MetricValues

Call = tuple[str, str | None]
"""The name of a tool and its arguments as canonical JSON; None for arguments that are not JSON."""


class ToolCallsMetric:
    """Share of the rows whose first response makes exactly the calls of the reference."""

    def __init__(self, config: ToolCalls) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the row has nothing to do with tools, if so."""
        if row.reference_tool_calls or row.fields.get("tools"):
            return None
        return "has neither `tools` nor a tool call in its reference"

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the calls of each row, and count how those of the others differ."""
        pairs = [(self._read(row.tool_calls), self._read(row.reference_tool_calls)) for row in rows]
        return share_of(
            [self._agree(found, expected) for found, expected in pairs],
            f"tool_calls|order:{self._config.order}|arguments:{self._config.arguments}",
            _count_differences(pairs),
        )

    def _read(self, calls: Sequence[Mapping[str, Any]]) -> list[Call]:
        return [read_call(call, with_arguments=self._config.arguments == "equal") for call in calls]

    def _agree(self, found: list[Call], expected: list[Call]) -> bool:
        if any(arguments is None for _, arguments in found):
            return False
        return found == expected if self._config.order == "strict" else Counter(found) == Counter(expected)


def read_call(call: Mapping[str, Any], *, with_arguments: bool = True) -> Call:
    """Return the name and the arguments of a call in OpenAI's form."""
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    name = str(function.get("name", ""))
    if not with_arguments:
        return name, ""
    arguments = function.get("arguments")
    try:
        value = parse_json(arguments or "{}") if isinstance(arguments, str) else arguments or {}
        return name, json.dumps(_canonical(value), sort_keys=True)
    except ValueError:
        return name, None


def _canonical(value: Any) -> Any:
    """Return a value in which equal numbers are written alike: in JSON, 1.0 and 1 are the same number."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count_differences(pairs: Sequence[tuple[list[Call], list[Call]]]) -> dict[str, int]:
    """Return the numbers of calls by what is wrong with them, over all rows."""
    counts = {"wrong_arguments": 0, "invalid_arguments": 0, "missing_calls": 0, "additional_calls": 0}
    for found, expected in pairs:
        extra, missing = Counter(found) - Counter(expected), Counter(expected) - Counter(found)
        names_found = Counter(name for name, _ in extra.elements())
        names_missing = Counter(name for name, _ in missing.elements())
        counts["wrong_arguments"] += (names_found & names_missing).total()
        counts["invalid_arguments"] += sum(arguments is None for _, arguments in found)
        counts["missing_calls"] += (names_missing - names_found).total()
        counts["additional_calls"] += (names_found - names_missing).total()
    return counts
