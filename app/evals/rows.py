"""The rows of an eval run: items as a dataset that the stage `evaluate` reads.

A row has the messages of the prompt, the item, and the sample if there is one. Rows of datasets end with a
reference, and an item has none: the item itself takes its place, as JSON. Graders read the item and the
sample only.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from app.evals.data_source import (
    MAX_ROWS,
    DataSource,
    FileIdSource,
    GeneratedDataSource,
    ReferenceInput,
    Source,
    SourceRow,
)
from app.http.errors import HttpError, field_error
from trainers.configs.graders.templates import VariableMissing, parse_template
from trainers.configs.parsing.json_schema import compile_schema

ITEM, SAMPLE = "item", "sample"
MAX_LINE_BYTES = 16 << 20
# The message of a fault contains the value, which may be the whole item.
MAX_FAULT_CHARACTERS = 500
SOURCE = "data_source.source"
_ROW: TypeAdapter[SourceRow] = TypeAdapter(SourceRow)
_MESSAGES: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])


def write_rows(
    data_source: DataSource, content: BinaryIO | None, schema: dict[str, Any] | None, path: Path
) -> int:
    """Write the rows of a data source, whose file is `content`, as a dataset; return their number.

    Raises UnprocessableContent for a row that is not valid, with its line.
    """
    validator = compile_schema(schema) if schema is not None else None
    n_rows = 0
    with path.open("w", encoding="utf-8") as file:
        for line, row in _read_rows(data_source.source, content):
            if validator is not None and (error := next(validator.iter_errors(row.item), None)) is not None:
                raise _row_error(
                    line, f"the item does not match the schema: {error.message[:MAX_FAULT_CHARACTERS]}"
                )
            file.write(json.dumps(_make_row(data_source, line, row), ensure_ascii=False) + "\n")
            n_rows += 1
    if not n_rows:
        raise field_error(SOURCE, "The file has no rows.")
    return n_rows


def read_sample(sample: dict[str, Any]) -> str | None:
    """Return the text of a completion in the form of graders or of a chat; None without one."""
    if isinstance(text := sample.get("output_text"), str):
        return text
    choices = sample.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and choices else None
    text = message.get("content") if isinstance(message, dict) else None
    return text if isinstance(text, str) else None


def _make_row(data_source: DataSource, line: int, row: SourceRow) -> dict[str, Any]:
    shown = json.dumps(row.item, ensure_ascii=False)
    reference = {"role": "assistant", "content": shown}
    if isinstance(data_source, GeneratedDataSource):
        return {"messages": [*_make_prompt(data_source, line, row.item), reference], ITEM: row.item}
    sample = read_sample(row.sample) if row.sample is not None else None
    if row.sample is not None and sample is None:
        raise _row_error(line, "the sample has neither `output_text` nor a message in `choices`")
    prompt = {"role": "user", "content": shown}
    return {"messages": [prompt, reference], ITEM: row.item, SAMPLE: sample or ""}


def _make_prompt(data_source: GeneratedDataSource, line: int, item: dict[str, Any]) -> list[dict[str, Any]]:
    values = {ITEM: item, SAMPLE: {}}
    source = data_source.input_messages
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


def _read_rows(source: Source, content: BinaryIO | None) -> Iterator[tuple[int, SourceRow]]:
    """Yield each row with its number from 1."""
    if not isinstance(source, FileIdSource):
        yield from enumerate(source.content, 1)
        return
    assert content is not None, "a source by id has a file"
    number = 0
    while text := content.readline(MAX_LINE_BYTES):
        number += 1
        if not text.strip():
            continue
        if number > MAX_ROWS:
            raise field_error(f"{SOURCE}.id", f"The file has more than {MAX_ROWS} rows.")
        try:
            yield number, _ROW.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise _row_error(number, f"{place}: {first['msg']}" if place else first["msg"]) from None


def _row_error(line: int, message: str) -> HttpError:
    return field_error(SOURCE, f"Line {line}: {message}.")
