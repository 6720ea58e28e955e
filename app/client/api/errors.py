"""The errors of the client.

ClientError
ServerUnreachable          no response, however often the request was repeated
RequestRefused             a response with an error of the API
AccessRefused              401, 403
ObjectMissing              404
RequestConflict            409
RequestInvalid             400, 413, 415, 422
ServiceFailure             429, 5xx
WorkFailed                 what was waited for has failed
JobFailed, GateRefused, JobCancelled, DeploymentFailed
WaitTimeout                it has not ended in time
DownloadDamaged            the bytes differ from their hash
"""

from collections.abc import Mapping
from typing import Any

import httpx2


class ClientError(Exception):
    """The root of the client's errors: `message` is what is wrong, and `hint` what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message} {hint}")
        self.message = message
        self.hint = hint


class ServerUnreachable(ClientError):
    """The service does not respond."""


class DownloadDamaged(ClientError):
    """Downloaded bytes differ from their hash."""


class WaitTimeout(ClientError):
    """What is waited for has not ended in time; it continues."""


class RequestRefused(ClientError):
    """A response with an error: `code` is from the published list, `fields` names invalid fields."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        status: int = 0,
        code: str = "",
        fields: list[dict[str, Any]] | None = None,
        used_by: list[str] | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.fields = fields or []
        self.used_by = used_by or []


class AccessRefused(RequestRefused):
    """The API key is missing, unknown, or lacks a scope."""


class ObjectMissing(RequestRefused):
    """There is no such object."""


class RequestConflict(RequestRefused):
    """The state of an object does not allow the request."""


class RequestInvalid(RequestRefused):
    """A field of the request is invalid."""


class ServiceFailure(RequestRefused):
    """The service cannot carry out the request now."""


class WorkFailed(ClientError):
    """What was waited for has failed; `code` is from the published list."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        code: str = "",
        details: Mapping[str, Any] | None = None,
        job_id: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.code = code
        self.details = dict(details or {})
        self.job_id = job_id


class JobFailed(WorkFailed):
    """A run of the job has failed."""


class GateRefused(JobFailed):
    """A gate of the job is not met: the model is not good enough."""


class JobCancelled(WorkFailed):
    """The job was cancelled."""


class DeploymentFailed(WorkFailed):
    """The deployment has failed or was stopped."""


class WaitInterrupted(KeyboardInterrupt):
    """Ctrl-C while waiting; what was waited for continues."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


_BY_STATUS: dict[int, type[RequestRefused]] = {
    400: RequestInvalid,
    401: AccessRefused,
    403: AccessRefused,
    404: ObjectMissing,
    409: RequestConflict,
    413: RequestInvalid,
    415: RequestInvalid,
    422: RequestInvalid,
}
_NO_KEY_HINT = "Run `tunesmith login`, or set TUNESMITH_API_KEY to a key of this service."


def read_error(response: httpx2.Response) -> RequestRefused:
    """Return the error of a response, in the API's form, in OpenAI's, or of a proxy in front of both."""
    status = response.status_code
    kind = _BY_STATUS.get(status, ServiceFailure)
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        text = " ".join(response.text.split())[:200]
        message = f"{response.request.method} {response.request.url.path} was answered by {status}: {text}"
        return kind(message, "Expected a response of Tunesmith: check the address.", status=status)
    # The API's hint is for the operator, who creates keys.
    hint = _NO_KEY_HINT if status == 401 else error.get("hint")
    return kind(
        message,
        hint,
        status=status,
        code=code,
        fields=error.get("fields"),
        used_by=error.get("used_by"),
    )
