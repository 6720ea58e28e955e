"""A remote file system whose failures are OSErrors, as those of a disk are."""

import functools
from typing import Any

# Their errors mean that the store did not respond, or refused the request. fsspec does not convert all.
CLIENT_PACKAGES = ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "urllib3")
# Also the smallest part of an upload that S3 accepts.
BLOCK_BYTES = 5 << 20


class StoreUnreachable(OSError):
    """The artifact store did not respond."""


class RemoteFiles:
    """A file system of fsspec, with OSError in place of the errors of its client."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def open(self, path: str, mode: str = "rb") -> Any:
        """Open a file with a buffer of `BLOCK_BYTES`; s3fs has 50 MiB for each file by default."""
        return self.__getattr__("open")(path, mode, block_size=BLOCK_BYTES)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._fs, name)
        if not callable(attribute):
            return attribute

        @functools.wraps(attribute)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return attribute(*args, **kwargs)
            except OSError:
                raise
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in CLIENT_PACKAGES:
                    raise
                raise StoreUnreachable(f"{type(error).__name__}: {error}") from error

        return call
