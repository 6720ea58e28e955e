"""The files of the artifact store that the settings name, where fsspec is not what opens them."""

from app.settings import Settings
from app.storage.remote.protocol import StoreFiles
from app.storage.s3.client import SCHEME
from app.storage.s3.files import open_bucket


def open_files(settings: Settings) -> StoreFiles | None:
    """Return the files of a bucket; None for a URL that fsspec opens.

    Raises:
        ImportError: The package for the store is not installed.
        ValueError: The URL is invalid.
    """
    if settings.artifacts_url.startswith(f"{SCHEME}://"):
        return open_bucket(settings.artifacts_url, settings)
    return None
