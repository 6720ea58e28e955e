"""The columns of a table that a visitor has chosen: in the URL to share them, in a cookie to keep them."""

from collections.abc import Sequence

from fastapi import Request, Response

ONE_YEAR_SECONDS = 31_536_000


def choose_columns(
    request: Request, view: str, columns: Sequence[str], default: Sequence[str]
) -> tuple[str, ...]:
    """Return the columns that the URL names, else those of the cookie, else the default, in their order."""
    given = request.query_params.getlist("column")
    if not given:
        given = request.cookies.get(_cookie(view), "").split(".")
    chosen = tuple(column for column in columns if column in given)
    return chosen or tuple(default)


def keep_columns(request: Request, response: Response, view: str, columns: Sequence[str]) -> None:
    """Keep the columns in the visitor's browser if the URL names them."""
    if "column" in request.query_params:
        response.set_cookie(
            _cookie(view), ".".join(columns), max_age=ONE_YEAR_SECONDS, httponly=True, samesite="lax"
        )


def _cookie(view: str) -> str:
    return f"tunesmith_columns_{view}"
