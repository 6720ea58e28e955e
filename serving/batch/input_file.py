"""The input file of a batch: one pass checks it and notes where each line begins, and whose it is.

What is kept of a line takes some hundred bytes, and the number of lines is limited, so that memory does not
depend on the size of the requests.
"""

import hashlib
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from serving.batch.files import MAX_FAULTS, MAX_MODELS, LineFault
from serving.http.limits import MAX_BODY_BYTES
from trainers.configs.stages.serving.batch import MAX_BATCH_BYTES, MAX_BATCH_LINES, BatchEndpoint

MAX_ID_CHARACTERS = 512
SHOWN_CHARACTERS = 200
REQUIRED = ("custom_id", "method", "url", "body")

Fields = dict[str, msgspec.Raw]
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode = msgspec.json.Decoder().decode


class LineInvalid(Exception):
    """A line with which the batch cannot begin."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(frozen=True)
class RequestLine:
    """A request of the file; the body is its JSON."""

    custom_id: str
    model: str
    body: bytes


@dataclass
class BatchInput:
    """An input file without faults; lines are numbered from 0, without empty ones."""

    path: Path
    endpoint: BatchEndpoint
    models: list[str] = field(default_factory=list)
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lengths: "array[int]" = field(default_factory=lambda: array("L"))
    model_numbers: "array[int]" = field(default_factory=lambda: array("H"))
    numbers: dict[bytes, int] = field(default_factory=dict)
    """The number of each line by the hash of its `custom_id`."""

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.offsets)

    def read(self, file: BinaryIO, number: int) -> RequestLine:
        """Return a request; `file` is the open input file."""
        file.seek(self.offsets[number])
        return parse_line(file.read(self.lengths[number]), self.endpoint)

    def find(self, custom_id: str) -> int | None:
        """Return the number of the line with an id."""
        return self.numbers.get(_hash(custom_id))


def read_input(
    path: Path, endpoint: BatchEndpoint, known_models: Collection[str] | None
) -> tuple[BatchInput, list[LineFault]]:
    """Read an input file; return it, and the first faults, with any of which the batch cannot begin.

    `known_models` are the names that requests may have; None allows all.
    """
    found, faults = BatchInput(path, endpoint), list[LineFault]()
    size = path.stat().st_size
    if size > MAX_BATCH_BYTES:
        message = f"The file has {size} bytes; at most {MAX_BATCH_BYTES} are allowed. Split it."
        return found, [LineFault(code="file_too_large", message=message)]
    model_numbers: dict[str, int] = {}
    for line_number, offset, line in _list_lines(path):
        if len(found) == MAX_BATCH_LINES:
            message = f"The file has more than {MAX_BATCH_LINES} requests. Split it."
            faults.append(LineFault(code="too_many_tasks", line=line_number, message=message))
            break
        try:
            request = parse_line(line, endpoint)
            _add(found, request, offset, len(line), known_models, model_numbers)
        except LineInvalid as error:
            fault = {"code": error.code, "message": error.message, "param": error.param}
            faults.append(LineFault(line=line_number, **fault))
            if len(faults) == MAX_FAULTS:
                break
    if not found.offsets and not faults:
        faults.append(LineFault(code="empty_file", message="The file has no requests."))
    return found, faults


def parse_line(line: bytes, endpoint: BatchEndpoint) -> RequestLine:
    """Parse and check a line; raises LineInvalid. The body's other parameters are checked when it is sent."""
    if len(line) > MAX_BODY_BYTES:
        raise LineInvalid("request_too_large", f"The line is larger than {MAX_BODY_BYTES} bytes.")
    fields = _parse_object(line, "The line")
    for name in REQUIRED:
        if name not in fields:
            raise LineInvalid("missing_required_parameter", f"The line has no {name!r}.", name)
    custom_id, method, url = (_read(fields, name, name) for name in REQUIRED[:3])
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARACTERS:
        raise LineInvalid(
            "invalid_type",
            f"'custom_id' must be a string of 1 to {MAX_ID_CHARACTERS} characters.",
            "custom_id",
        )
    if method != "POST":
        raise LineInvalid("invalid_method", f"'method' must be POST, not {_show(method)}.", "method")
    if url != endpoint:
        raise LineInvalid(
            "url_mismatch", f"'url' must be the endpoint of the batch, {endpoint}, not {_show(url)}.", "url"
        )
    body = bytes(fields["body"])
    values = _parse_object(body, "'body'", "body")
    model = _read(values, "model", "body.model")
    if not isinstance(model, str) or not model:
        raise LineInvalid(
            "missing_required_parameter", "'body' must name a model in 'model', as a string.", "body.model"
        )
    if _read(values, "stream", "body.stream") not in (False, None):
        raise LineInvalid("invalid_value", "A batch cannot stream: remove 'stream'.", "body.stream")
    return RequestLine(custom_id, model, body)


def _add(
    found: BatchInput,
    request: RequestLine,
    offset: int,
    length: int,
    known_models: Collection[str] | None,
    model_numbers: dict[str, int],
) -> None:
    key = _hash(request.custom_id)
    if key in found.numbers:
        raise LineInvalid(
            "duplicate_custom_id",
            f"An earlier line has the 'custom_id' {_show(request.custom_id)}.",
            "custom_id",
        )
    if known_models is not None and request.model not in known_models:
        raise LineInvalid(
            "model_not_found",
            f"No deployment or alias that the batch may use has the name {_show(request.model)}.",
            "body.model",
        )
    if request.model not in model_numbers:
        if len(found.models) == MAX_MODELS:
            raise LineInvalid(
                "too_many_models", f"The file names more than {MAX_MODELS} models.", "body.model"
            )
        model_numbers[request.model] = len(found.models)
        found.models.append(request.model)
    found.numbers[key] = len(found)
    found.offsets.append(offset)
    found.lengths.append(length)
    found.model_numbers.append(model_numbers[request.model])


def _list_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and content of the lines that are not empty; a long one is cut."""
    with path.open("rb") as file:
        number = offset = 0
        while line := file.readline(MAX_BODY_BYTES + 2):
            number += 1
            start, offset = offset, offset + len(line)
            while not line.endswith(b"\n") and (rest := file.readline(MAX_BODY_BYTES)):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            if line.strip():
                yield number, start, line.rstrip(b"\r\n")


def _parse_object(content: bytes, name: str, param: str | None = None) -> Fields:
    try:
        content.decode()
        return _decode_fields(content)
    except msgspec.ValidationError:
        raise LineInvalid("invalid_json_line", f"{name} must be a JSON object.", param) from None
    except (ValueError, RecursionError) as error:
        raise LineInvalid("invalid_json_line", f"{name} is not valid JSON: {error}.", param) from None


def _read(fields: Fields, name: str, param: str) -> Any:
    """Return the value of a field, None without it; raises LineInvalid for a number such as 1e999."""
    try:
        return _decode(fields[name]) if name in fields else None
    except msgspec.ValidationError:
        raise LineInvalid(
            "invalid_value", f"{param!r} contains a number that is out of range.", param
        ) from None


def _hash(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _show(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}…"
