"""The errors of boto3 as those of the artifact store: what is wrong, and which setting corrects it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.storage.remote.errors import (
    BucketInOtherRegion,
    BucketMissing,
    StoreCredentialsRefused,
    StoreEncryptionRefused,
    StoreUnreachable,
)

CREDENTIAL_CODES = {
    "401",
    "403",
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthFailure",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
CREDENTIAL_ERRORS = {
    "CredentialRetrievalError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
REGION_CODES = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
MISSING_CODES = {"404", "NoSuchKey"}
CREDENTIALS_HINT = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another source of boto3's, to credentials that may "
    "list the bucket, and read, write and delete its objects"
)


@contextmanager
def store_errors(bucket: str, path: str = "") -> Iterator[None]:
    """Convert errors of boto3 to OSErrors; `path` names the file of a FileNotFoundError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _convert_response(bucket, path, error) from error
    except BotoCoreError as error:
        name = type(error).__name__
        if name in CREDENTIAL_ERRORS:
            raise StoreCredentialsRefused(
                f"no credentials for the bucket {bucket}: {error}. {CREDENTIALS_HINT}."
            ) from error
        if name == "NoRegionError":
            raise BucketInOtherRegion(
                f"no region for the bucket {bucket}. Set AWS_DEFAULT_REGION to it."
            ) from error
        raise StoreUnreachable(f"the store of the bucket {bucket} does not respond: {error}") from error


def error_code(error: Any) -> str:
    """Return the code of a ClientError; of a response without a body, its HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _convert_response(bucket: str, path: str, error: Any) -> OSError:
    code = error_code(error)
    detail = f"{code}: {error.response.get('Error', {}).get('Message', '')}"
    if code in MISSING_CODES:
        return FileNotFoundError(f"nothing is stored under {path}")
    if code == "NoSuchBucket":
        return BucketMissing(
            f"the bucket {bucket} does not exist. Create it, or correct "
            "TUNESMITH_ARTIFACTS_URL or TUNESMITH_S3_ENDPOINT_URL."
        )
    if code == "RequestTimeTooSkewed":
        return StoreCredentialsRefused(f"the clock of this host is wrong ({detail}). Synchronize it.")
    if code in CREDENTIAL_CODES:
        return StoreCredentialsRefused(
            f"the store refuses the credentials for the bucket {bucket} ({detail}). {CREDENTIALS_HINT}."
        )
    if code in REGION_CODES:
        region = error.response.get("Error", {}).get("Region")
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = region or headers.get("x-amz-bucket-region", "the region of the bucket")
        return BucketInOtherRegion(
            f"the bucket {bucket} is in another region ({detail}). Set AWS_DEFAULT_REGION to {region}."
        )
    if code.startswith("KMS.") or code in (
        "InvalidEncryptionAlgorithmError",
        "ServerSideEncryptionConfigurationNotFoundError",
    ):
        return StoreEncryptionRefused(
            f"the store cannot encrypt in the bucket {bucket} ({detail}). Correct "
            "TUNESMITH_S3_ENCRYPTION and TUNESMITH_S3_KMS_KEY_ID."
        )
    return StoreUnreachable(f"the store of the bucket {bucket} failed: {detail}")
