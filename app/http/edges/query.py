"""The check of a request's query, which every route of the API has."""

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.http.errors import UnprocessableContent


async def check_query(request: Request) -> None:
    """Raise UnprocessableContent for a query parameter that the route does not have."""
    if not request.scope["query_string"]:
        return
    known = known_parameters(request)
    unknown = sorted(set(request.query_params) - known)
    if not unknown:
        return
    listed = f"Known are: {', '.join(sorted(known))}" if known else "This route takes no query parameters"
    fields = [{"field": name, "message": f"There is no such query parameter. {listed}."} for name in unknown]
    more = f" ({len(fields) - 1} more)" if len(fields) > 1 else ""
    raise UnprocessableContent(
        f"The request is malformed. {unknown[0]}: {fields[0]['message']}{more}", fields=fields
    )


def known_parameters(request: Request) -> set[str]:
    """Return the names of the query parameters of the request's route."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    return _names(route.dependant)


def _names(dependant: Dependant) -> set[str]:
    names: set[str] = set()
    for field in dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= set(kind.model_fields)
        else:
            names.add(field.alias)
    return names.union(*map(_names, dependant.dependencies))
