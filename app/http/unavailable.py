"""Errors of a database, disk or artifact store that is unavailable, as responses with status 503."""

import errno
import sqlite3

from sqlalchemy.exc import DBAPIError

from app.http.errors import HttpError, InternalServerError, ServiceUnavailable
from app.storage.database import DATABASE_UNAVAILABLE
from app.storage.remote.errors import StoreUnreachable
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import has_disk_full_cause

# Other errors of the operating system, such as a missing file, are bugs.
UNAVAILABLE_ERRNOS = {
    errno.EIO,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}
SQLITE_FULL_PHRASE = "database or disk is full"
REPEAT_HINT = "Send the request again in some seconds; GET /readyz shows what is unavailable."


class StorageFull(ServiceUnavailable):
    """A file cannot be written."""

    code = ErrorCode.disk_full


class StoreUnavailable(ServiceUnavailable):
    """The artifact store does not respond, or a file of it cannot be read or written."""

    code = ErrorCode.artifacts_unreachable


def as_unavailable(error: Exception) -> ServiceUnavailable | None:
    """Return the response to a dependency that is unavailable; None for any other error, which is a bug."""
    if has_disk_full_cause(error) or SQLITE_FULL_PHRASE in str(error):
        return StorageFull(
            "The disk of the service is full.", hint="Free space on it, or send the request again later."
        )
    if isinstance(error, DATABASE_UNAVAILABLE):
        if isinstance(error, DBAPIError) and _is_bug(error.orig):
            return None
        return ServiceUnavailable("The database is unavailable.", hint=REPEAT_HINT)
    is_system_error = isinstance(error, OSError) and error.errno in UNAVAILABLE_ERRNOS
    if is_system_error or isinstance(error, ConnectionError | TimeoutError | StoreUnreachable):
        return StoreUnavailable("Files of the service cannot be read or written now.", hint=REPEAT_HINT)
    return None


def as_server_error(error: Exception, request_id: str | None) -> HttpError:
    """Return the response to an exception that no route handles: something is unavailable, or it is a bug."""
    return as_unavailable(error) or InternalServerError(
        f"The service failed on this request. Its log has the traceback under {request_id}.",
        hint="Send the request again; if it fails again, report the failure with that id.",
    )


def _is_bug(cause: BaseException | None) -> bool:
    """Return whether SQLite reports a faulty statement, which has the class of a locked file."""
    return isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode & 0xFF == sqlite3.SQLITE_ERROR
