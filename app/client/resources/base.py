"""The base of all collections."""

from typing import Any

from app.client.api.connection import Connection
from app.client.api.modes import Mode, ModeBound


class Collection(ModeBound[Mode]):
    """The objects of one kind."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_blocking(self) -> bool:
        """Return whether operations return values instead of awaitables."""
        return self._connection.transport.is_blocking


def as_json(value: Any) -> Any:
    """Return configs, and mappings and lists of them, as JSON: only the fields that were set."""
    if hasattr(value, "model_dump"):
        dumped = value.model_dump(mode="json", exclude_unset=True)
        # The kind of a stage is a default of its class, which decides everything else.
        stage = getattr(value, "stage", None)
        return {"stage": str(stage), **dumped} if isinstance(stage, str) else dumped
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
