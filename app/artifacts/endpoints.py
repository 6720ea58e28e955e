"""Artifacts over HTTP; every endpoint requires the scope `worker`."""

import sys
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.artifacts import service, staging
from app.artifacts.keys import MAX_KEY_LENGTH
from app.artifacts.schemas import ArtifactView, FileCreate, FolderCreate, Sha256, SizeBytes, UploadProgress
from app.downloads.response import download_response, download_responses
from app.http.auth import CallerDependency, require_worker
from app.http.edges.query import check_query
from app.settings import get_settings

router = APIRouter(
    prefix="/artifacts", tags=["artifacts"], dependencies=[Depends(require_worker), Depends(check_query)]
)

Key = Annotated[
    str, Path(max_length=MAX_KEY_LENGTH, description="Key in the store, such as `models/model_…`.")
]
ContentHash = Annotated[Sha256, Path(description="SHA-256 of the whole file, in hexadecimal.")]


@router.get(
    "/files/{key:path}",
    responses=download_responses("application/octet-stream", "The file."),
    response_class=Response,
)
def download_artifact_file(request: Request, key: Key) -> Response:
    """Download a published file, or a file of a published folder; `Range` continues a download.

    `.manifest.json` in a folder lists its files with their hashes.
    """
    return download_response(request.headers, service.find_file(key))


@router.get("/uploads/{sha256}")
def get_artifact_upload(sha256: ContentHash) -> UploadProgress:
    """Return how much of a file has arrived: 0 bytes if nothing has."""
    return staging.get_progress(get_settings(), sha256)


# `append` checks the size of the body.
@router.patch(
    "/uploads/{sha256}",
    max_body_size=sys.maxsize,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def append_artifact_upload(
    request: Request,
    caller: CallerDependency,
    sha256: ContentHash,
    offset_bytes: Annotated[
        int, Query(ge=0, le=2**53, description="Bytes before these, which must be all that have arrived.")
    ],
    size_bytes: Annotated[SizeBytes, Query(description="Size of the whole file.")],
) -> UploadProgress:
    """Send the next bytes of a file; the last ones verify its hash.

    Nothing can read the file until it is published. What arrived before a connection broke is kept for a day.
    """
    return await staging.append(
        get_settings(), caller.key_id, sha256, offset_bytes, size_bytes, request.stream()
    )


@router.post("/files", status_code=201)
def publish_artifact_file(body: FileCreate) -> ArtifactView:
    """Publish an uploaded file under a key. A repetition changes nothing; other content is refused."""
    return service.publish_file(get_settings(), body)


@router.post("/folders", status_code=201)
def publish_artifact_folder(body: FolderCreate) -> ArtifactView:
    """Publish uploaded files as a folder with a manifest; as for a file otherwise."""
    return service.publish_folder(get_settings(), body)


@router.delete("/{key:path}", status_code=204)
def delete_artifact(key: Key) -> None:
    """Delete an artifact that no row names; deleting it again changes nothing."""
    service.delete_artifact(key)
