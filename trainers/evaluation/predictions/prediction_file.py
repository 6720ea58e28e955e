"""Predictions that exist already: files of `generate`, of an evaluation, or of any other program.

A line has the fields of a dataset's row, or `prompt` (or `source`) and `reference`, and what a model wrote:
`prediction` or `response`, or a list `predictions` or `responses`. A line of an evaluation's `rows.jsonl` has
the responses of several models in `models`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.data.formats import detect_format
from trainers.evaluation.scored_rows import read_stored_samples
from trainers.rendering.render import PromptCompletion, parse_prompt, read_rows
from trainers.runtime.errors import DatasetInvalid

MODEL = "model"
_SINGLE_FIELDS = ("prediction", "response")
_LIST_FIELDS = ("predictions", "responses")
_NOT_OF_THE_ROW = frozenset(
    {*_SINGLE_FIELDS, *_LIST_FIELDS, "models", "fields", "row", "tool_calls", "error", "finish_reason"}
)
HINT = (
    "A line needs `prediction` or `response`, or a list in `predictions` or `responses`; and `prompt` or "
    "`source`, and `reference`, or the fields of a dataset's row."
)

ModelCalls = dict[int, Sequence[Mapping[str, Any]]]


@dataclass
class Predictions:
    """The rows of a file and the responses of each model to them."""

    pairs: list[PromptCompletion] = field(default_factory=list)
    responses: dict[str, dict[int, Sequence[str | None]]] = field(default_factory=dict)
    """The samples by the model's role and the row."""
    tool_calls: dict[str, ModelCalls] = field(default_factory=dict)
    """The calls of the first samples, likewise."""
    sha256: str = ""


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions.

    Raises DatasetFileNotFound, or DatasetInvalid, which names the line.
    """
    predictions = Predictions()
    for number, line in read_rows(path):
        try:
            samples = _read_samples(line)
            if predictions.pairs and samples.keys() != predictions.responses.keys():
                raise ValueError(
                    f"it has responses of {', '.join(samples)}, but the lines before it of "
                    f"{', '.join(predictions.responses)}"
                )
            pair = _read_pair(number, line, path)
            if any(pair.row in one for one in predictions.responses.values()):
                raise ValueError(f"its row {pair.row} occurs twice")
        except ValueError as error:
            raise DatasetInvalid(f"Line {number} of {path} cannot be scored: {error}.", HINT) from None
        predictions.pairs.append(pair)
        for role, responses in samples.items():
            predictions.responses.setdefault(role, {})[pair.row] = responses
            predictions.tool_calls.setdefault(role, {})[pair.row] = _read_calls(line, role)
    if not predictions.pairs:
        raise DatasetInvalid(f"{path} has no lines.", HINT)
    predictions.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return predictions


def _read_samples(line: Mapping[str, Any]) -> dict[str, Sequence[str | None]]:
    models = line.get("models")
    if isinstance(models, Mapping):
        if not models or not all(isinstance(one, Mapping) for one in models.values()):
            raise ValueError("`models` must contain an object for each model")
        return {str(role): read_stored_samples(one, "responses") for role, one in models.items()}
    name = next((name for name in (*_SINGLE_FIELDS, *_LIST_FIELDS) if name in line), None)
    if name is None:
        raise ValueError(f"it has no prediction; its fields are {', '.join(list(line)[:8]) or 'none'}")
    return {MODEL: read_stored_samples(line, name)}


def _read_calls(line: Mapping[str, Any], role: str) -> Sequence[Mapping[str, Any]]:
    models = line.get("models")
    calls = (models[role] if isinstance(models, Mapping) else line).get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []


def _read_pair(number: int, line: dict[str, Any], path: Path) -> PromptCompletion:
    """Return the prompt and the reference of a line, under its own number if it has one."""
    fields = line.get("fields") if isinstance(line.get("models"), Mapping) else None
    source = {name: value for name, value in line.items() if name not in _NOT_OF_THE_ROW}
    source |= fields if isinstance(fields, Mapping) else {}
    own = line.get("row")
    row = own if type(own) is int else number
    if detect_format(source) is None:
        return _read_plain_pair(row, source)
    try:
        return parse_prompt(row, source, path)
    except DatasetInvalid as error:
        raise ValueError(error.message.rstrip(".")) from None


def _read_plain_pair(row: int, source: dict[str, Any]) -> PromptCompletion:
    """Return the pair of a line with `prompt` or `source`, and `reference`."""
    reference = source.pop("reference", None)
    prompt = source.pop("prompt", None) or source.get("source") or []
    calls = source.pop("reference_tool_calls", None)
    if not isinstance(reference, str | None):
        raise ValueError("`reference` must be a text")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not all(_is_message(one) for one in messages):
        raise ValueError("`prompt` must be a text or a list of messages")
    completion: dict[str, Any] = {"role": "assistant", "content": reference or ""}
    if isinstance(calls, list):
        completion["tool_calls"] = calls
    return PromptCompletion(row, messages, [completion], None, source)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value
