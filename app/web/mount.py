"""The place of the pages in the service's application: at the root, below every path of the API."""

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Scope

from app.web.headers import PageHeadersMiddleware

# First segments of the paths that are not pages; unknown paths below them have errors in JSON.
RESERVED = frozenset(
    {"api", "v1", "docs", "openapi.json", "static-offline-docs", "metrics", "readyz", "healthz"}
)


class PagesMount(Mount):
    """A mount that matches the pages, and for browsers every unknown path, which has an error page."""

    def __init__(self, app: ASGIApp, paths: Iterable[str]) -> None:
        super().__init__("", PageHeadersMiddleware(app))
        self._segments = {_first_segment(path) for path in paths}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a path that is a page or could be meant as one."""
        if scope["type"] != "http" or (segment := _first_segment(scope["path"])) in RESERVED:
            return Match.NONE, {}
        if segment not in self._segments and "text/html" not in Headers(scope=scope).get("accept", ""):
            return Match.NONE, {}
        return super().matches(scope)


def _first_segment(path: str) -> str:
    return path.removeprefix("/").partition("/")[0]
