"""The accounts at the clouds, from the environment of the worker that holds their keys.

The variables are those that the clouds' own tools and their users know. They stay in this process: no key is
sent to a machine, written to a row, or part of an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from workers.clouds.protocol import CloudError, CloudErrorKind

LAMBDA_URL = "https://cloud.lambda.ai/api/v1"
# The user of the images of both clouds, which are Ubuntu.
DEFAULT_SSH_USER = "ubuntu"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class AwsAccount:
    """Keys, and where in the account machines are launched."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str
    key_name: str
    security_group: str
    subnet_id: str
    instance_type: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the account; raises CloudError `unauthorized` that names the missing variables."""
        require(
            environment,
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_DEFAULT_REGION",
            "AWS_EC2_KEY_NAME",
            "AWS_EC2_SECURITY_GROUP",
            "AWS_EC2_SUBNET_ID",
        )
        return cls(
            access_key_id=environment["AWS_ACCESS_KEY_ID"].strip(),
            secret_access_key=environment["AWS_SECRET_ACCESS_KEY"].strip(),
            region=environment["AWS_DEFAULT_REGION"].strip(),
            key_name=environment["AWS_EC2_KEY_NAME"].strip(),
            security_group=environment["AWS_EC2_SECURITY_GROUP"].strip(),
            subnet_id=environment["AWS_EC2_SUBNET_ID"].strip(),
            instance_type=environment.get("AWS_INSTANCE_TYPE", "").strip() or None,
        )


@dataclass(frozen=True)
class LambdaAccount:
    """The key, and how machines are launched and reached."""

    api_key: str = field(repr=False)
    region: str
    ssh_key_path: Path
    ssh_user: str = DEFAULT_SSH_USER
    instance_type: str | None = None
    url: str = LAMBDA_URL

    def __post_init__(self) -> None:
        """Refuse an address that would receive the key without TLS, and a key that no header can have."""
        address = urlsplit(self.url)
        is_safe = address.scheme == "https" or address.hostname in _LOOPBACK
        if not is_safe or not address.hostname or address.username or address.query:
            raise CloudError(
                CloudErrorKind.unauthorized,
                "LAMBDA_ENDPOINT_URL must be an https:// address without a user or a query.",
            )
        if not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key:
            raise CloudError(
                CloudErrorKind.unauthorized, "LAMBDA_API_KEY has characters that no key has. Set it again."
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the account; raises CloudError `unauthorized` that names the missing variables."""
        require(environment, "LAMBDA_API_KEY", "LAMBDA_REGION", "LAMBDA_SSH_KEY_PATH")
        return cls(
            api_key=environment["LAMBDA_API_KEY"].strip(),
            region=environment["LAMBDA_REGION"].strip(),
            ssh_key_path=Path(environment["LAMBDA_SSH_KEY_PATH"].strip()).expanduser(),
            ssh_user=environment.get("LAMBDA_USERNAME", "").strip() or DEFAULT_SSH_USER,
            instance_type=environment.get("LAMBDA_INSTANCE_TYPE", "").strip() or None,
            url=environment.get("LAMBDA_ENDPOINT_URL", "").strip().rstrip("/") or LAMBDA_URL,
        )


def require(environment: Mapping[str, str], *names: str) -> None:
    """Check that variables are set; raises CloudError `unauthorized`."""
    missing = [name for name in names if not environment.get(name, "").strip()]
    if missing:
        raise CloudError(
            CloudErrorKind.unauthorized,
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set on this worker.",
        )
