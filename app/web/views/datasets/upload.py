"""The upload of a dataset: one form, with a progress bar by `static/upload.js` and without scripts."""

from fastapi import Request, Response

from app.datasets.reception import MAX_REQUEST_BYTES, receive_dataset
from app.datasets.upload import FormUpload
from app.settings import get_settings
from app.web.rendering import go_to
from app.web.visitor import CSRF_FIELD, CSRF_HEADER, check_token, check_upload, view_router

router = view_router(check=check_upload)


@router.post("/datasets", max_body_size=MAX_REQUEST_BYTES)
async def upload_dataset(request: Request) -> Response:
    """Store a file, and show what validation has found."""

    def check(upload: FormUpload) -> None:
        check_token(request, request.headers.get(CSRF_HEADER) or upload.fields.get(CSRF_FIELD))

    received = await receive_dataset(request, get_settings(), check)
    return go_to(request, f"/datasets/{received.id}{'?existing=1' if received.exists else ''}")
