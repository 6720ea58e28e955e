"""The outermost middleware: request ids, access log, request metrics, and status 500 for bugs."""

import logging
import re
import secrets
import sys
import time

from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.http import metrics
from app.http.error_responses import error_response
from app.http.errors import ServiceUnavailable
from app.http.unavailable import as_server_error
from app.openai_api.errors import openai_error_response
from app.scheduling.incidents import describe_error

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
UNKNOWN_ROUTE = "none"
API_PREFIX = "/api/v1"
OPENAI_PREFIX = "/v1"

logger = logging.getLogger("app.requests")


class RequestMiddleware:
    """A middleware that logs and counts every request, and responds to unhandled exceptions with 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        logs.request_id.set(request_id)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if status == 413:
                    await _lift_body_limit(scope, receive, send)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            response = as_server_error(error, request_id)
            if isinstance(response, ServiceUnavailable):
                logger.error("%s %s failed: %s", scope["method"], scope["path"], describe_error(error))
            else:
                logger.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                respond = openai_error_response if _is_openai(scope) else error_response
                await respond(response)(scope, receive, send_with_id)
        finally:
            _record(scope, status, time.perf_counter() - started)


async def _lift_body_limit(scope: Scope, receive: Receive, send: Send) -> None:
    """Keep Starlette from replacing the refusal of a body over the limit by one in plain text."""

    async def do_nothing(scope: Scope, receive: Receive, send: Send) -> None:
        return

    await RequestBodyLimitMiddleware(do_nothing, sys.maxsize)(scope, receive, send)


def _is_openai(scope: Scope) -> bool:
    return bool(scope["path"].startswith(f"{OPENAI_PREFIX}/"))


def _request_id(scope: Scope) -> str:
    """Return the client's request id if it is safe to log, else a new one."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return given if SAFE_REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _route_template(scope: Scope) -> str:
    """Return the route's path as OpenAPI shows it; an included route has it without the prefix."""
    route = scope.get("route")
    if not isinstance(route, Route):
        return UNKNOWN_ROUTE
    prefixes = (prefix for prefix in (API_PREFIX, OPENAI_PREFIX) if scope["path"].startswith(f"{prefix}/"))
    return next(prefixes, "") + route.path


def _record(scope: Scope, status: int, seconds: float) -> None:
    """Count and log the request.

    The metrics are labelled with the route's template, since a path with ids would create a series per id.
    """
    template = _route_template(scope)
    metrics.REQUEST_COUNT.labels(scope["method"], template, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(scope["method"], template).observe(seconds)
    fields = {
        "method": scope["method"],
        "path": scope["path"],
        "route": template,
        "status": status,
        "duration_seconds": round(seconds, 6),
        "client": scope["client"][0] if scope.get("client") else None,
    }
    logger.info("%s %s %s", scope["method"], scope["path"], status, extra=fields)
