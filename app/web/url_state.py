"""The state of a page in its URL, so that it can be shared: filters, the position in a list, and columns."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from fastapi import Request, Response

ONE_YEAR_SECONDS = 31_536_000


def encode_query(fields: Mapping[str, object]) -> str:
    """Return a query with the fields that have a value, of a list each of its items."""
    return urlencode({name: value for name, value in fields.items() if value not in (None, "")}, doseq=True)


class ListFilters:
    """The filters of a list, all of which are in the URL: a dataclass with `after`, its position."""

    def query(self, **changes: object) -> str:
        """Return the query of this list with other values, without its position unless that is given."""
        return encode_query({**vars(self), "after": None, **changes})

    @property
    def is_filtered(self) -> bool:
        """Whether a filter may hide rows."""
        return bool(self.query())


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
    """Keep the columns in a cookie of the visitor if the URL names them."""
    if "column" in request.query_params:
        response.set_cookie(
            _cookie(view), ".".join(columns), max_age=ONE_YEAR_SECONDS, httponly=True, samesite="lax"
        )


def _cookie(view: str) -> str:
    return f"tunesmith_columns_{view}"
