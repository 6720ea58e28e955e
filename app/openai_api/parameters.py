"""Parameters that many requests share: bodies without unknown fields, metadata, and queries for it."""

import re
from typing import Annotated

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from app.http.edges.query import known_parameters
from app.http.errors import UnprocessableContent
from trainers.runtime.error_codes import ErrorCode

METADATA_QUERY = re.compile(r"metadata\[(?P<key>[^\[\]]{1,64})\]")
MAX_METADATA = 16

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[
    dict[MetadataKey, MetadataValue],
    Field(
        max_length=MAX_METADATA, description="At most 16 pairs of strings, which are kept with the object."
    ),
]


class OpenAIBody(BaseModel):
    """A body whose unknown parameters are refused by name, and whose values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


async def read_metadata_query(
    request: Request,
    metadata: Annotated[
        str | None,
        Query(
            alias="metadata[key]", description="The value of a key of `metadata`, as `metadata[key]=value`."
        ),
    ] = None,
) -> dict[str, str]:
    """Return the pairs of a nested query, such as `metadata[team]=maths`."""
    found = ((METADATA_QUERY.fullmatch(name), value) for name, value in request.query_params.multi_items())
    return {match["key"]: value for match, value in found if match is not None}


MetadataQuery = Annotated[dict[str, str], Depends(read_metadata_query)]


async def refuse_unknown_query(request: Request) -> None:
    """Raise UnprocessableContent for a query parameter that the route does not have."""
    known = known_parameters(request)
    takes_metadata = "metadata[key]" in known
    for name in request.query_params:
        if name in known or (takes_metadata and METADATA_QUERY.fullmatch(name)):
            continue
        listed = f"Known are: {', '.join(sorted(known))}." if known else "This route takes none."
        error = UnprocessableContent(
            f"Unknown query parameter {name!r}. {listed}",
            fields=[{"field": name, "message": "It is unknown."}],
        )
        error.code = ErrorCode.unknown_parameter
        raise error
