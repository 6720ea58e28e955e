"""Errors of AWS's API as those of our protocol.

The codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
"""

from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions
import botocore.parsers

from trainers.runtime.redaction import redact
from workers.clouds.protocol import CloudError, CloudErrorKind

MAX_MESSAGE_CHARACTERS = 500
RETRY_AFTER_SECONDS = 5.0
NO_CAPACITY = frozenset(
    {
        "InsufficientCapacity",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "SpotMaxPriceTooLow",
    }
)
QUOTA_EXCEEDED = frozenset(
    {
        "AddressLimitExceeded",
        "InstanceLimitExceeded",
        "InsufficientFreeAddressesInSubnet",
        "MaxSpotInstanceCountExceeded",
        "NetworkInterfaceLimitExceeded",
        "PendingVerification",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    }
)
RATE_LIMITED = frozenset(
    {
        "EC2ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
UNAUTHORIZED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "Blocked",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
)
# The token has launched a machine with another request: it must be found by its tags, not launched again.
TOKEN_IS_USED = "IdempotentParameterMismatch"  # noqa: S105 — the code of an error
UNKNOWN_MACHINE = frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"})


class UnknownAwsMachine(Exception):
    """AWS has no machine with this id."""


@contextmanager
def translate_errors(action: str) -> Iterator[None]:
    """Raise CloudError, or UnknownAwsMachine, for errors of boto3; the action is a part of the message."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise _translate(action, error) from None
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError):
        raise CloudError(CloudErrorKind.unauthorized, f"AWS: {action}: no keys.") from None
    except botocore.exceptions.ParamValidationError as error:
        raise CloudError(CloudErrorKind.invalid_request, f"AWS: {action}: {_clean(str(error))}") from None
    except (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError) as error:
        # A response that was cut off is not an error of botocore's own tree.
        # The message of a lost connection contains the address with the request's parameters.
        message = f"AWS: {action}: no response that can be read ({type(error).__name__})."
        raise CloudError(CloudErrorKind.unreachable, message) from None


def _translate(action: str, error: botocore.exceptions.ClientError) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = f"AWS: {action}: {code}: {_clean(str(error.response.get('Error', {}).get('Message', '')))}"
    if code in UNKNOWN_MACHINE:
        return UnknownAwsMachine(message)
    if code in RATE_LIMITED:
        return CloudError(CloudErrorKind.rate_limited, message, RETRY_AFTER_SECONDS)
    return CloudError(_find_kind(code, status), message)


def _find_kind(code: str, status: int) -> CloudErrorKind:
    if code in NO_CAPACITY:
        return CloudErrorKind.no_capacity
    if code in QUOTA_EXCEEDED:
        return CloudErrorKind.quota_exceeded
    if code in UNAUTHORIZED:
        return CloudErrorKind.unauthorized
    # A status below 400 with an error is a response that cannot be read.
    if code == TOKEN_IS_USED or status >= 500 or status < 400:
        return CloudErrorKind.unreachable
    return CloudErrorKind.invalid_request


def _clean(text: str) -> str:
    """Return what may be stored of a message; the encoded part of a refused permission is long."""
    return redact(text)[:MAX_MESSAGE_CHARACTERS]
