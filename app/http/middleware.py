"""What happens to every request of the API: an id, a line in the log, a count, and an answer to bugs."""

import logging
import re
import secrets
import time

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.http import error_responses, metrics

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
NO_ROUTE = "none"
API_PREFIX = "/api/v1"

logger = logging.getLogger("app.requests")


class RequestMiddleware:
    """The outermost edge of the API; faults that nothing else has answered end here as a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        logs.request_id.set(request_id)
        begun, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await _internal_error(request_id)(scope, receive, send_with_id)
        finally:
            _tell(scope, status, time.perf_counter() - begun)


def _request_id(scope: Scope) -> str:
    """The client's id for the request if it may stand in a log, else a new one."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return given if SAFE_REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _internal_error(request_id: str) -> ASGIApp:
    return error_responses.error_response(
        500,
        "internal_error",
        f"This is a fault of the service, not of your request. Its log tells more under {request_id}.",
        "Send the request again; if it fails again, report it with that id.",
    )


def _template(scope: Scope) -> str:
    """The path as the API's page shows it; FastAPI knows an included route without the prefix."""
    route = scope.get("route")
    if not isinstance(route, Route):
        return NO_ROUTE
    return API_PREFIX + route.path if scope["path"].startswith(f"{API_PREFIX}/") else route.path


def _tell(scope: Scope, status: int, seconds: float) -> None:
    """Count the request by its route's template, since each id in a label would be a series, and log it."""
    template = _template(scope)
    metrics.REQUEST_COUNT.labels(scope["method"], template, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(scope["method"], template).observe(seconds)
    facts = {
        "method": scope["method"],
        "path": scope["path"],
        "route": template,
        "status": status,
        "duration_seconds": round(seconds, 6),
        "client": scope["client"][0] if scope.get("client") else None,
    }
    logger.info("%s %s %s", scope["method"], scope["path"], status, extra=facts)
