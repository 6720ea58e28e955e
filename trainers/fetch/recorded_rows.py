"""The rows whose responses are recorded: conversations that end with the reference, if there is one.

The messages are those of the file, not our normalized form: they are sent to OpenAI as they are.
"""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.data.conversation import extract_prompt_and_completion, offered_tools
from trainers.data.files.jsonl import iter_rows, save_rows
from trainers.data.fingerprint import value_digest
from trainers.data.formats import (
    CONVERSATION_FIELDS,
    FIELD_SETS,
    Row,
    RowFormat,
    detect_format,
    is_openai_preference,
)
from trainers.fetch.training_rows import HELD_OUT, TrainingSplit
from trainers.openai_account.fine_tuned_models import REINFORCEMENT, SUPERVISED, FineTunedModel
from trainers.runtime.errors import DatasetInvalid

PART, PROMPTS = "part", "prompts"
ASSISTANT = "assistant"
# Of English text; a text of other scripts has fewer bytes to a token, but more bytes to a character.
BYTES_PER_TOKEN = 4.0
# More and less than any text has; that of a row has quotes and the names of fields.
MIN_BYTES, MAX_BYTES = 1.0, 12.0
# Of a response with its reasoning.
REASONING_TOKENS = 1000
# All rows of a dataset have the same form, so that one without a reference gets a message in its place.
WITHOUT_REFERENCE = "without_reference"
NO_REFERENCE = {"role": ASSISTANT, "content": "(no reference)"}


@dataclass
class RecordedCounts:
    """What the rows have in common, from which a metric is suggested."""

    held_out: int = 0
    prompts: int = 0
    repeated: int = 0
    trained: int = 0
    reference_characters: list[int] = field(default_factory=list)
    tool_calls: int = 0
    without_reference: int = 0

    def add(self, row: Row) -> None:
        """Count a recorded row."""
        self.prompts += row[PART] == PROMPTS
        self.held_out += row[PART] == HELD_OUT
        _, reference = split_reference(row)
        if reference is None:
            self.without_reference += 1
        else:
            self.reference_characters.append(len(str(reference.get("content") or "")))
            self.tool_calls += bool(reference.get("tool_calls"))

    def describe(self) -> dict[str, Any]:
        """Return the counts for the result."""
        lengths = self.reference_characters
        return {
            "with": len(lengths),
            "without": self.without_reference,
            "tool_calls": self.tool_calls,
            "median_characters": statistics.median(lengths) if lengths else None,
        }


def write_recorded_rows(
    split: TrainingSplit, prompts: Path | None, training: Path, target: Path
) -> RecordedCounts:
    """Write held-out rows and further prompts as conversations, with their `part`; remove those of `split`.

    A prompt is recorded once: its repetition would cost again, and is no independent observation. One of
    `prompts` that the rows of `training` have as well gets no reference, since the new model has seen it.

    Raises DatasetInvalid for a row without a prompt.
    """
    counts = RecordedCounts()
    save_rows(target, _convert_files(split, prompts, training, counts))
    split.held_out.unlink()
    return counts


def split_reference(row: Row) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the prompt of a recorded row as it is sent, and its reference if it has one."""
    *prompt, last = row["messages"]
    return prompt, None if row.get(WITHOUT_REFERENCE) else last


def estimate_tokens(source: FineTunedModel, training: Path, recorded: Path) -> dict[str, Any]:
    """Return the expected tokens of all prompts and responses.

    OpenAI's own count of the training file gives the bytes of a token, where it is known: `trained_tokens` is
    that count times the epochs. It is not used where no text has so few or so many bytes to a token, as when
    another file replaces the training file. A response is expected to be as long as the mean reference.
    """
    bytes_per_token, basis = BYTES_PER_TOKEN, f"{BYTES_PER_TOKEN:g} bytes of UTF-8 a token"
    n_bytes = sum(_count_bytes(row) for _, row in iter_rows(training))
    counted = n_bytes * (source.epochs or 0) / (source.trained_tokens or 1)
    if MIN_BYTES <= counted <= MAX_BYTES and source.method_type == SUPERVISED:
        bytes_per_token = counted
        basis = (
            f"{bytes_per_token:.2f} bytes a token: {n_bytes} bytes of messages, {source.trained_tokens} "
            f"trained tokens, {source.epochs} epochs"
        )
    prompts = references = n_references = n_rows = 0
    for _, row in iter_rows(recorded):
        prompt, reference = split_reference(row)
        n_rows += 1
        prompts += _count_bytes({"messages": prompt, "tools": row.get("tools")})
        if reference is not None and row[PART] == HELD_OUT:
            references, n_references = references + _count_bytes({"messages": [reference]}), n_references + 1
    mean = references / n_references / bytes_per_token if n_references else 0.0
    if source.method_type == REINFORCEMENT:
        # Its rows have no reference.
        mean = REASONING_TOKENS
        basis += f"; {REASONING_TOKENS} tokens a response"
    return {
        "prompt": round(prompts / bytes_per_token),
        "completion": round(n_rows * mean),
        "basis": basis,
    }


def _convert_files(
    split: TrainingSplit, prompts: Path | None, training: Path, counts: RecordedCounts
) -> Iterator[Row]:
    trained = {split.prompt_of(row) for _, row in iter_rows(training)} if prompts is not None else set()
    seen: set[bytes] = set()
    for path, part in ((split.held_out, HELD_OUT), (prompts, PROMPTS)):
        if path is None:
            continue
        for number, row in iter_rows(path):
            try:
                found = _convert(row, part)
                has_key = part == PROMPTS and detect_format(row) is not None
                is_trained = has_key and split.prompt_of(row) in trained
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DatasetInvalid(
                    f"Row {number} of the {part.replace('_', '-')} rows has no prompt: {error}",
                    "Correct the row.",
                ) from error
            digest = value_digest([found["messages"][:-1], found.get("tools")])
            if digest in seen:
                counts.repeated += 1
                continue
            seen.add(digest)
            if is_trained:
                counts.trained += 1
                found[WITHOUT_REFERENCE] = True
            counts.add(found)
            yield found


def _convert(row: Row, part: str) -> Row:
    row_format = detect_format(row)
    messages, reference = _read_messages(row, row_format)
    text = frozenset().union(*FIELD_SETS[row_format]) if row_format is not None else frozenset({"prompt"})
    others = {name: value for name, value in row.items() if name not in CONVERSATION_FIELDS | text}
    if reference is None and others and row_format is RowFormat.prompt:
        # Of reinforcement: graders read the other fields, which take the place of a reference.
        reference = {"role": ASSISTANT, "content": json.dumps(others, ensure_ascii=False)}
    converted: Row = {**others, "messages": [*messages, reference or NO_REFERENCE], PART: part}
    if reference is None:
        converted[WITHOUT_REFERENCE] = True
    if tools := offered_tools(row):
        converted["tools"] = tools
    if "parallel_tool_calls" in row:
        converted["parallel_tool_calls"] = row["parallel_tool_calls"]
    return converted


def _read_messages(
    row: Row, row_format: RowFormat | None
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the messages of a prompt and its reference, as they are in the file where it is OpenAI's."""
    if is_openai_preference(row):
        return row["input"]["messages"], _clean(row["preferred_output"][-1])
    if row_format in (RowFormat.messages, RowFormat.prompt) and not (row.get("history") or row.get("system")):
        messages = [_clean(message) for message in row["messages"]]
        if messages[-1].get("role") != ASSISTANT:
            return messages, None
        # Scores are of the last turn that is trained.
        last = max(
            n
            for n, message in enumerate(row["messages"])
            if message.get("role") == ASSISTANT and message.get("weight") != 0
        )
        return messages[:last], messages[last]
    prompt, completion = extract_prompt_and_completion(row)
    return prompt, completion[-1] if completion else None


def _clean(message: dict[str, Any]) -> dict[str, Any]:
    # A weight is of training; a request with it is refused.
    return {name: value for name, value in message.items() if name != "weight"}


def _count_bytes(row: Row) -> int:
    """Return the bytes of the texts, calls and tools of a conversation."""
    parts = [row.get("messages") or row.get("input") or [], row.get("preferred_output"), row.get("tools")]
    return sum(len(json.dumps(part, ensure_ascii=False).encode()) for part in parts if part)
