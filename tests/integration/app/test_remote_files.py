"""Errors of a remote store's client: they are OSErrors, for which runs and requests wait."""

import pytest

from app.http.unavailable import as_unavailable
from app.storage.remote.errors import StoreUnreachable
from app.storage.remote.fsspec_files import FsspecFiles
from trainers.runtime.error_codes import ErrorCode

EndpointConnectionError = type(
    "EndpointConnectionError", (Exception,), {"__module__": "aiohttp.client_exceptions"}
)


class UnreachableFiles:
    protocol = "gs"

    def cat_file(self, path: str) -> bytes:
        raise EndpointConnectionError(f"Could not connect: {path}")

    def rm(self, path: str) -> None:
        raise FileNotFoundError(path)

    def size(self, path: str) -> int:
        raise ZeroDivisionError(path)


def test_an_error_of_the_client_is_an_os_error_with_status_503() -> None:
    with pytest.raises(StoreUnreachable, match="EndpointConnectionError: Could not connect: a/b") as raised:
        FsspecFiles(UnreachableFiles()).cat_file("a/b")
    response = as_unavailable(raised.value)
    assert response is not None
    assert (response.status, response.code) == (503, ErrorCode.artifacts_unreachable)


def test_a_missing_file_and_a_bug_keep_their_errors() -> None:
    files = FsspecFiles(UnreachableFiles())
    with pytest.raises(FileNotFoundError):
        files.rm("a")
    with pytest.raises(ZeroDivisionError):
        files.size("a")
    assert files.protocol == "gs"
