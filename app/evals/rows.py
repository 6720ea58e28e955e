"""The rows of an eval run: items as a dataset that the stage `evaluate` reads.

A row has the messages of the prompt, the item, and the sample if there is one. Rows of datasets end with a
reference, and an item has none: the item itself takes its place, as JSON. Graders read the item and the
sample only.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from app.evals.data_source import (
    MAX_ROWS,
    DataSource,
    FileContentSource,
    ReferenceInput,
    SampledDataSource,
    SourceRow,
    find_model,
)
from app.http.errors import HttpError, field_error
from trainers.configs.graders.templates import VariableMissing, parse_template
from trainers.configs.parsing.json_schema import MAX_NESTING, compile_schema, is_nested_deeper

# Stage `evaluate` reads the calls in this field together with the text of the sample.
ITEM, SAMPLE, SAMPLE_TOOLS = "item", "sample", "sample_tool_calls"
MAX_LINE_BYTES = 16 << 20
# Templates and references repeat the text of an item.
MAX_TOTAL_CHARACTERS = 1 << 30
# The message of a fault contains the value, which may be the whole item.
MAX_FAULT_CHARACTERS = 500
SOURCE = "data_source.source"
STORED_INPUT = ReferenceInput(type="item_reference", item_reference="item.input")
_ROW: TypeAdapter[SourceRow] = TypeAdapter(SourceRow)
_MESSAGES: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])

NumberedRows = Iterable[tuple[int, SourceRow]]


def write_rows(data_source: DataSource, rows: NumberedRows, schema: dict[str, Any] | None, path: Path) -> int:
    """Write the rows of a data source as a dataset; return their number.

    Raises UnprocessableContent for a row that is not valid, with its line.
    """
    validator = compile_schema(schema) if schema is not None else None
    n_rows = n_characters = 0
    with path.open("w", encoding="utf-8") as file:
        for line, row in rows:
            if is_nested_deeper(row.model_dump(), MAX_NESTING):
                raise _row_error(line, f"it is nested more than {MAX_NESTING} levels deep")
            if validator is not None and (fault := validator.explain(row.item)) is not None:
                shown = fault[:MAX_FAULT_CHARACTERS]
                raise _row_error(line, f"the item does not match the schema: {shown}")
            text = json.dumps(_make_row(data_source, line, row), ensure_ascii=False)
            n_characters += len(text)
            if n_characters > MAX_TOTAL_CHARACTERS:
                raise field_error(SOURCE, "The prompts of the items are larger than 1 GiB together.")
            file.write(text + "\n")
            n_rows += 1
            if n_rows > MAX_ROWS:
                raise field_error(SOURCE, f"There are more than {MAX_ROWS} items.")
    if not n_rows:
        raise field_error(SOURCE, "There are no items.")
    return n_rows


def read_sample(sample: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """Return the text and the tool calls of a completion in the form of graders or of a chat; else None."""
    choices = sample.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and choices else None
    message = message if isinstance(message, dict) else {}
    calls = sample.get("output_tools") or message.get("tool_calls") or []
    text = sample.get("output_text", message.get("content"))
    if not isinstance(calls, list) or not isinstance(text, str | None) or (text is None and not calls):
        return None
    return text or "", calls


def _make_row(data_source: DataSource, line: int, row: SourceRow) -> dict[str, Any]:
    shown = json.dumps(row.item, ensure_ascii=False)
    reference = {"role": "assistant", "content": shown}
    if find_model(data_source) is not None:
        assert isinstance(data_source, SampledDataSource), "another source names no model"
        return {"messages": [*_make_prompt(data_source, line, row.item), reference], ITEM: row.item}
    sample = read_sample(row.sample) if row.sample is not None else None
    if row.sample is not None and sample is None:
        raise _row_error(line, "the sample has neither `output_text` nor a message in `choices`")
    text, calls = sample or ("", [])
    prompt = {"role": "user", "content": shown}
    tools = {SAMPLE_TOOLS: calls} if calls else {}
    return {"messages": [prompt, reference], ITEM: row.item, SAMPLE: text, **tools}


def _make_prompt(data_source: SampledDataSource, line: int, item: dict[str, Any]) -> list[dict[str, Any]]:
    values = {ITEM: item, SAMPLE: {}}
    source = data_source.input_messages or STORED_INPUT
    try:
        if isinstance(source, ReferenceInput):
            template = parse_template("{{" + source.item_reference + "}}")
            return _check_messages(line, template.variables[0].find(values))
        return [
            {"role": message.role, "content": parse_template(message.text).render(values)}
            for message in source.template
        ]
    except VariableMissing as error:
        raise _row_error(line, str(error)) from None


def _check_messages(line: int, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    try:
        messages = _MESSAGES.validate_python(value)
    except ValidationError:
        raise _row_error(line, "`item_reference` names neither a text nor a list of messages") from None
    return messages


def list_content(source: FileContentSource) -> NumberedRows:
    """Return the rows of a request, each with its number from 1."""
    return enumerate(source.content, 1)


def read_content(content: BinaryIO) -> Iterator[tuple[int, SourceRow]]:
    """Yield the rows of a file, each with its line from 1; raises UnprocessableContent."""
    number = 0
    while text := content.readline(MAX_LINE_BYTES):
        number += 1
        if not text.strip():
            continue
        try:
            yield number, _ROW.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise _row_error(number, f"{place}: {first['msg']}" if place else first["msg"]) from None


def _row_error(line: int, message: str) -> HttpError:
    return field_error(SOURCE, f"Line {line}: {message}.")
