"""The base of all views, and of those that can be acted on."""

from typing import Any, ClassVar, Generic, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from app.client.api.connection import Connection
from app.client.api.modes import Iteration, Mode, ModeBound, Operation


class ApiView(BaseModel):
    """An object of the API. `api_schema` is the name of its schema in the OpenAPI document."""

    model_config = ConfigDict(extra="allow", ignored_types=(Operation, Iteration))

    api_schema: ClassVar[str | None] = None


class RemoteObject(ApiView, ModeBound[Mode], Generic[Mode]):
    """An object of the API that is connected with its service."""

    _connection: Connection = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Remember the connection that the object was read by."""
        if isinstance(context, Connection):
            self._connection = context

    def is_blocking(self) -> bool:
        """Return whether operations return values instead of awaitables."""
        return self._connection.transport.is_blocking

    def adopt(self, fresh: Self) -> None:
        """Take the fields of a newer version of this object."""
        self.__dict__.update(fresh.__dict__)
        object.__setattr__(self, "__pydantic_extra__", fresh.__pydantic_extra__)


class ErrorRecord(ApiView):
    """Why a run, a job or a deployment failed."""

    api_schema = "ErrorView"

    code: str
    message: str
    hint: str | None = None
    details: dict[str, Any] | None = None
