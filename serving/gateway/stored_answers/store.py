"""The interface of a store of answers; the gateway that the API mounts has one."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from serving.gateway.request_body import Fields


class StoreLoss(StrEnum):
    """Why an answer that should have been stored was not."""

    too_large = "too_large"
    queue_full = "queue_full"
    malformed = "malformed"
    database = "database"
    failed = "failed"


@dataclass(frozen=True, slots=True)
class CompleteAnswer:
    """A request and its complete answer.

    `content` is a JSON object, or the lines of a stream if `streamed`; of a response's stream only the last
    event. `request` has the raw JSON of each field, as the client sent it.
    """

    id: str
    path: str
    key_id: str
    model: str
    deployment_id: str
    store_days: float
    request: Fields
    content: bytes
    streamed: bool
    previous_response_id: str | None


class AnswerStore(Protocol):
    """Stores answers and returns the items of earlier ones."""

    def new_id(self, path: str) -> str:
        """Return an unused id for an answer of this path, which sorts by age."""

    async def load_conversation(self, response_id: str, key_id: str) -> Sequence[bytes]:
        """Return the items of a response and of all before it, as JSON, oldest first.

        Raises an ApiError if one of them does not exist or belongs to another key.
        """

    async def store(self, answer: CompleteAnswer) -> bool:
        """Store an answer and return whether that succeeded, within seconds; never raises."""

    def record_loss(self, reason: StoreLoss) -> None:
        """Count an answer that is not stored."""

    async def aclose(self) -> None:
        """Store the answers that wait, and end."""
