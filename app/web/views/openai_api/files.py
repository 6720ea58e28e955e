"""Downloads of files of the OpenAI API, for which the login stands in for the key."""

from typing import Annotated

from fastapi import Path, Request, Response

from app.downloads.response import download_response
from app.files import service
from app.web.visitor import view_router

router = view_router()


@router.get("/files/{file_id}/content")
def download_file(
    request: Request, file_id: Annotated[str, Path(pattern=r"^file-[0-9A-Za-z]{1,60}$")]
) -> Response:
    """Download a file."""
    return download_response(request.headers, service.find_content(file_id))
