"""The tokens that API keys use on a day, counted here and reported to the service, which adds all gateways.

A report contains the tokens of the day since this process started, so it can be repeated. Its response is the
total of each key over all gateways. A key is therefore refused when the total, of a second ago, and what this
process has not yet reported reach its limit; requests in progress end.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from serving.gateway.rate_limits import AuthorizedClient
from serving.gateway.reports.changes import ChangeReporter
from serving.gateway.request_context import RequestContext
from serving.http.errors import TokensOfDayUsed

DAY_SECONDS = 86_400
MAX_COUNTS = 20_000

# The service's totals by key, or None if the report was not accepted.
Report = Callable[[str, list[dict[str, Any]]], Awaitable[dict[str, int] | None]]
# Id of the key, and the day in UTC as the number of days since 1970.
DayKey = tuple[str, int]


class TokenRecorder:
    """Counts the tokens of each key and day, and reports them once a second while they change."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._counts: dict[DayKey, int] = {}
        self._accepted: dict[DayKey, int] = {}
        self._totals: dict[DayKey, int] = {}
        self._changes: ChangeReporter[DayKey] = ChangeReporter("the tokens of keys", self._send)

    def observe(self, context: RequestContext) -> None:
        """Count the tokens of a closed request."""
        if not context.key_id or not (tokens := context.used_tokens()):
            return
        key = context.key_id, today()
        if key not in self._counts and len(self._counts) >= MAX_COUNTS:
            self._forget_reported()
        self._counts[key] = self._counts.get(key, 0) + tokens
        self._changes.mark(key)

    def used_today(self, client: AuthorizedClient) -> int:
        """Return the tokens that the key has used today, as far as this process knows."""
        key = client.key_id, today()
        unreported = self._counts.get(key, 0) - self._accepted.get(key, 0)
        return max(client.tokens_today, self._totals.get(key, 0)) + unreported

    def check(self, client: AuthorizedClient) -> None:
        """Raise TokensOfDayUsed if the key has none left."""
        limit = client.tokens_per_day
        assert limit is not None, "the key has a limit"
        if self.used_today(client) < limit:
            return
        reset = datetime.now(UTC) + timedelta(seconds=seconds_until_reset())
        raise TokensOfDayUsed(
            f"This API key has used its tokens of the day (limit: {limit}). More are available from "
            f"{reset:%Y-%m-%dT%H:%MZ}.",
            seconds_until_reset(),
        )

    async def aclose(self) -> None:
        """Report the last changes."""
        await self._changes.aclose()

    async def _send(self, reporter: str, keys: list[DayKey]) -> bool:
        sent = {key: self._counts[key] for key in keys}
        totals = await self._report(
            reporter,
            [
                {"key_id": key_id, "day": format_day(day), "tokens": tokens}
                for (key_id, day), tokens in sent.items()
            ],
        )
        if totals is None:
            return False
        # A service that refuses reports returns no totals: this process then counts for itself.
        self._accepted.update({key: tokens for key, tokens in sent.items() if key[0] in totals})
        self._totals.update({(key_id, today()): total for key_id, total in totals.items()})
        return True

    def _forget_reported(self) -> None:
        """Forget the keys whose counts were accepted: the service adds a new count to the old one."""
        for key in [key for key in self._counts if key not in self._changes and key[1] != today()]:
            for values in (self._counts, self._accepted, self._totals):
                values.pop(key, None)


def today() -> int:
    """Return the day in UTC, as the number of days since 1970."""
    return int(time.time()) // DAY_SECONDS


def seconds_until_reset() -> int:
    """Return the seconds until the next day begins."""
    return DAY_SECONDS - int(time.time()) % DAY_SECONDS


def format_day(day: int) -> str:
    """Return a day as `2026-01-31`."""
    return datetime.fromtimestamp(day * DAY_SECONDS, UTC).date().isoformat()
