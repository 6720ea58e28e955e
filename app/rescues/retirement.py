"""The dates at which OpenAI switches models off, for those whose date its API does not give.

Source: https://developers.openai.com/api/docs/deprecations, notice of 2026-10-14, read on 2026-11-29. Models
that were fine-tuned from a base are switched off with it. New fine-tuning jobs end on 2027-01-06.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import date

LAST_FINE_TUNING_DAY = date(2027, 1, 6)
_JANUARY = date(2027, 1, 14)
SHUTDOWN_DATES = {
    "gpt-4o-2024-08-06": _JANUARY,
    "gpt-4o-2024-11-20": _JANUARY,
    "gpt-4o-mini-2024-07-18": _JANUARY,
    "gpt-4.1-2025-04-14": _JANUARY,
    "gpt-4.1-mini-2025-04-14": _JANUARY,
}


def find_shutdown_date(model: str, base: str, announced: Mapping[str, str]) -> date | None:
    """Return the date of a model or of its base, of OpenAI's list of models or of the table."""
    for name in (model, base):
        with suppress(KeyError, ValueError):
            return date.fromisoformat(announced[name])
    return SHUTDOWN_DATES.get(base)
