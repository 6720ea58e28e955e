"""The body of a request for embeddings; an unknown parameter is rejected unless its value has no effect."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.engines.openai_server.schemas import MAX_TOKEN_IDS, TokenIds, is_without_effect
from serving.http.errors import InvalidRequest
from serving.http.limits import MAX_EMBEDDING_INPUTS

Text = str | TokenIds
Inputs = (
    Annotated[list[str], Field(fail_fast=True, max_length=MAX_EMBEDDING_INPUTS)]
    | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_EMBEDDING_INPUTS)]
)


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    input: Text | Inputs
    dimensions: int | None = Field(None, ge=1, le=MAX_TOKEN_IDS)
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def texts(self) -> Sequence[str | list[int]]:
        """The texts, as text or token ids."""
        first = self.input[0] if isinstance(self.input, list) and self.input else None
        is_alone = isinstance(self.input, str) or isinstance(first, int)
        return cast(Sequence[str | list[int]], [self.input] if is_alone else self.input)

    @model_validator(mode="after")
    def reject_unknown(self) -> Self:
        """Reject a parameter that would change the embeddings but is not supported."""
        for name, value in (self.model_extra or {}).items():
            if not is_without_effect(name, value):
                raise InvalidRequest(
                    f"The parameter {name!r} is not supported by this engine; leave it out.", name
                )
        return self

    @model_validator(mode="after")
    def reject_empty(self) -> Self:
        """Reject a request without texts, and an empty text."""
        if not self.input:
            raise InvalidRequest("'input' is empty; it must contain at least one text.", "input")
        for index, text in enumerate(self.texts):
            if not text:
                raise InvalidRequest(f"'input[{index}]' is empty; a text needs at least one token.", "input")
        return self
