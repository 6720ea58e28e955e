"""The artifact store that the settings name: a disk, a bucket, the API, or another file system of fsspec."""

from app.once import Once
from app.settings import Settings, get_settings
from app.storage.api_store.client import SCHEMES, ArtifactsApi
from app.storage.api_store.store import ApiArtifactStore
from app.storage.artifacts import ArtifactStore
from app.storage.s3.client import SCHEME
from app.storage.s3.files import open_bucket

# Files that this host has verified before.
VERIFIED = "verified-files.log"


@Once
def get_store() -> ArtifactStore:
    """Return the process's artifact store."""
    return open_artifact_store(get_settings())


def open_artifact_store(settings: Settings) -> ArtifactStore:
    """Return the store of the settings, without a request to it.

    Raises:
        ImportError: The package for the store is not installed.
        StoreRefused: The credentials that boto3 should use do not exist.
        ValueError: The URL or the file of an authority is invalid.
    """
    url, cache, record = settings.artifacts_url, settings.data_dir / "cache", settings.data_dir / VERIFIED
    scheme = url.partition("://")[0]
    if scheme in SCHEMES:
        api = ArtifactsApi(url, settings.worker_key.get_secret_value(), ca_file=settings.control_ca_file)
        return ApiArtifactStore(url, api, cache, record)
    files = open_bucket(url, settings) if scheme == SCHEME else None
    return ArtifactStore(url, cache, record, files)
