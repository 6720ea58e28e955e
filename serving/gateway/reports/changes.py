"""Reports of values that have changed, once a second while they change."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

REPORT_SECONDS = 1.0
MAX_REPORTED = 200

Key = TypeVar("Key", bound=tuple[Any, ...])

logger = logging.getLogger("tunesmith.gateway")


class ChangeReporter(Generic[Key]):
    """Calls `send` with the id of this process and the keys whose values have changed.

    `send` reports the values as they are now, and returns whether they were accepted. If not, they are sent
    again with the next report, so the same values may be reported twice. `subject` names them in the log.
    """

    def __init__(self, subject: str, send: Callable[[str, list[Key]], Awaitable[bool]]) -> None:
        self._subject = subject
        self._send = send
        self._changed: set[Key] = set()
        self._reporter = ""
        self._task: asyncio.Task[None] | None = None

    def __contains__(self, key: Key) -> bool:
        """Return whether the key has changed since its last report."""
        return key in self._changed

    def mark(self, key: Key) -> None:
        """Note that the value of a key has changed."""
        self._changed.add(key)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._report_until_unchanged())

    def forget(self, key: Key) -> None:
        """Leave a key out of the next report."""
        self._changed.discard(key)

    async def aclose(self) -> None:
        """Report the last changes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._changed:
            await self._report()

    async def _report_until_unchanged(self) -> None:
        while self._changed:
            await asyncio.sleep(REPORT_SECONDS)
            await self._report()
        self._task = None

    async def _report(self) -> None:
        # Chosen late: processes that are forked from one must not share it.
        self._reporter = self._reporter or f"gateway_{secrets.token_hex(12)}"
        keys = sorted(self._changed)[:MAX_REPORTED]
        self._changed.difference_update(keys)
        is_accepted = False
        try:
            is_accepted = await self._send(self._reporter, keys)
        except Exception:
            logger.exception("cannot report %s", self._subject)
        finally:
            # Also of a report that is cancelled because the process ends.
            if not is_accepted:
                self._changed.update(keys)
