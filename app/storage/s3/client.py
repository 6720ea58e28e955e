"""The client of one bucket: its address and options from the settings, credentials from boto3's own chain."""

from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from app.settings import Settings
from app.storage.s3.errors import store_errors

SCHEME = "s3"
CONNECT_SECONDS = 5
# A store that is frozen for a minute has responded by then; what does not respond is tried again.
READ_SECONDS = 70
MAX_ATTEMPTS = 4
MAX_CONNECTIONS = 16


@dataclass(frozen=True)
class Bucket:
    """A bucket, the options of requests that write to it, and the client of this process."""

    name: str
    client: Any
    encryption: dict[str, str]

    @classmethod
    def from_settings(cls, url: str, settings: Settings) -> Self:
        """Return the bucket of a URL; no request is sent.

        Raises:
            ImportError: boto3 is not installed.
            StoreCredentialsRefused: The profile that boto3 should use does not exist.
            ValueError: The URL or the endpoint is invalid.
        """
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
            max_pool_connections=MAX_CONNECTIONS,
            # Other stores know the checksum that we send, but not the one that boto3 adds to every request.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": _addressing_style(settings)},
        )
        # What is left out comes from boto3's own chain: variables, files, the role of the machine.
        options = {"endpoint_url": settings.s3_endpoint_url or None}
        if settings.s3_access_key_id:
            options |= {
                "aws_access_key_id": settings.s3_access_key_id,
                "aws_secret_access_key": settings.s3_secret_access_key.get_secret_value(),
            }
        name = parse_bucket(url)
        with store_errors(name):
            client = boto3.session.Session().client("s3", config=config, **options)
        return cls(name, client, encryption_options(settings))


def _addressing_style(settings: Settings) -> str:
    # Few stores but AWS have a name for each bucket.
    if settings.s3_addressing == "auto" and settings.s3_endpoint_url:
        return "path"
    return settings.s3_addressing


def parse_bucket(url: str) -> str:
    """Return the bucket of `s3://bucket/prefix`; raises ValueError for any other form."""
    parts = urlsplit(url)
    if parts.scheme != SCHEME or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("write s3://BUCKET/PREFIX, with credentials in the environment")
    return parts.netloc


def encryption_options(settings: Settings) -> dict[str, str]:
    """Return the parameters of a request that creates an object; none leaves it to the bucket's default."""
    if settings.s3_encryption == "none":
        return {}
    key = {"SSEKMSKeyId": settings.s3_kms_key_id} if settings.s3_kms_key_id else {}
    return {"ServerSideEncryption": settings.s3_encryption, **key}
