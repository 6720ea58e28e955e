"""The upload of a dataset: one form, with a progress bar by `static/upload.js` and without scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastapi import Request, Response

from app.datasets.reception import MAX_REQUEST_BYTES, receive_dataset
from app.datasets.upload import FormUpload
from app.settings import get_settings
from app.web.rendering import go_to
from app.web.visitor import CSRF_FIELD, CSRF_HEADER, check_token, check_upload, view_router
from trainers.data.conversion.csv_table import Delimiter, TextEncoding
from trainers.data.formats import RowFormat

# A row of each format that people write by hand; docs/guides/own-data.md lists all of them.
FORMAT_EXAMPLES: Final[Mapping[RowFormat, str]] = {
    RowFormat.prompt_completion: '{"prompt": "Translate: 안녕", "completion": "Hello"}',
    RowFormat.question_answer: '{"question": "What is 3 + 4?", "answer": "3 + 4 = 7\\n#### 7"}',
    RowFormat.messages: '{"messages": [{"role": "user", "content": "안녕"}, '
    '{"role": "assistant", "content": "Hello"}]}',
    RowFormat.instruction: '{"instruction": "Translate: 안녕", "response": "Hello"}',
    RowFormat.alpaca: '{"instruction": "Translate to English.", "input": "안녕", "output": "Hello"}',
    RowFormat.preference: '{"prompt": "Translate: 안녕", "chosen": "Hello", "rejected": "Goodbye"}',
    RowFormat.text: '{"text": "A document of continued pretraining."}',
}

router = view_router(check=check_upload)


@dataclass(frozen=True)
class UploadOptions:
    """The choices of the form."""

    max_bytes: int
    delimiters: Sequence[str] = tuple(Delimiter)
    encodings: Sequence[str] = tuple(TextEncoding)


def upload_options() -> UploadOptions:
    """Return the choices of the form on this service."""
    return UploadOptions(get_settings().max_upload_bytes)


@router.post("/datasets", max_body_size=MAX_REQUEST_BYTES)
async def upload_dataset(request: Request) -> Response:
    """Store a file, and show what validation has found."""

    def check(upload: FormUpload) -> None:
        check_token(request, request.headers.get(CSRF_HEADER) or upload.fields.get(CSRF_FIELD))

    received = await receive_dataset(request, get_settings(), check)
    return go_to(request, f"/datasets/{received.id}{'?existing=1' if received.exists else ''}")
