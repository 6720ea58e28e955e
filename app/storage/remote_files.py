"""A remote file system whose failures are OSErrors, as those of a disk are."""

import functools
from typing import Any

# Their errors mean that the store did not respond, or refused the request. fsspec does not convert all.
CLIENT_PACKAGES = ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "urllib3")


class StoreUnreachable(OSError):
    """The artifact store did not respond."""


class RemoteFiles:
    """A file system of fsspec, with OSError in place of the errors of its client."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

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
