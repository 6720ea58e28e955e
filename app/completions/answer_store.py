"""The store of answers of the mounted gateway, in the database."""

import asyncio
import logging
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from app.completions.conversations import load_conversation
from app.completions.writer import LOSS_COUNT, AnswerWriter
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE
from app.tables.base import new_id
from serving.gateway.stored_answers.answer import RESPONSES_PATH
from serving.gateway.stored_answers.store import CompleteAnswer, StoreLoss
from serving.http.errors import RetryableError
from trainers.runtime.error_codes import ErrorCode

# The end of an answer waits no longer than this for the database.
MAX_HOLD_SECONDS = 5.0

logger = logging.getLogger(__name__)


class ConversationUnavailable(RetryableError):
    """The earlier responses of a conversation cannot be read now."""

    status = 503
    type = "server_error"
    code = ErrorCode.database_unavailable
    retry_after_seconds = 5

    def __init__(self) -> None:
        super().__init__("The earlier responses cannot be read: the database is unavailable. Try again soon.")


class SqlAnswerStore:
    """An AnswerStore; each API process has one."""

    def __init__(self) -> None:
        self._writer = AnswerWriter()

    def new_id(self, path: str) -> str:
        """Return an id in OpenAI's form: an engine's own may repeat those of another engine."""
        return new_id("resp") if path == RESPONSES_PATH else new_id("chatcmpl", "-")

    async def load_conversation(self, response_id: str, key_id: str) -> Sequence[bytes]:
        """Return the items of a conversation; raises ConversationUnavailable and those of the query."""
        try:
            return await run_in_threadpool(load_conversation, response_id, key_id)
        except (OSError, *DATABASE_UNAVAILABLE) as error:
            logger.warning("cannot read stored responses: %s", describe_error(error))
            raise ConversationUnavailable from error

    async def store(self, answer: CompleteAnswer) -> bool:
        """Store an answer and return whether that succeeded in time."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._writer.submit(answer)), MAX_HOLD_SECONDS)
        except TimeoutError:
            self.record_loss(StoreLoss.database)
            logger.error("an answer was not stored: the database took over %.0f s", MAX_HOLD_SECONDS)
            return False

    def record_loss(self, reason: StoreLoss) -> None:
        """Count an answer that is not stored."""
        LOSS_COUNT.labels(reason).inc()

    async def aclose(self) -> None:
        """Store the answers that wait, and end the thread."""
        await run_in_threadpool(self._writer.stop)
