"""Numbers, durations and times as the pages show them."""

import math
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from app.web.catalogue import Translate

MINUTE, HOUR, DAY = 60, 3600, 86_400
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_number(value: float | None) -> str:
    """Return an integer with separators, and another number with four significant digits."""
    if value is None:
        return "–"
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    if 1e5 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 4)}f}"


def format_percent(share: float) -> str:
    """Return a share from 0 to 1 in percent; only a complete one is 100 %."""
    return "100 %" if share >= 1 else f"{min(99, math.floor(round(share * 100, 6)))} %"


def format_bytes(size: float | None) -> str:
    """Return a size in the largest unit that is not greater than it."""
    if size is None:
        return "–"
    unit = 0
    while size >= 1024 and unit < len(BYTE_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {BYTE_UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {BYTE_UNITS[unit]}"


def format_duration(seconds: float | None, t: Translate) -> str:
    """Return a duration by its two largest units."""
    if seconds is None:
        return "–"
    whole = int(max(0, seconds))
    if whole < MINUTE:
        return t("common.seconds", s=whole)
    if whole < HOUR:
        return t("common.minutes_seconds", m=whole // MINUTE, s=whole % MINUTE)
    if whole < DAY:
        return t("common.hours_minutes", h=whole // HOUR, m=whole % HOUR // MINUTE)
    return t("common.days_hours", d=whole // DAY, h=whole % DAY // HOUR)


def format_time(value: datetime | str | None, style: str = "relative") -> str | Markup:
    """Return a `<time>` element, which the browser shows in the reader's zone.

    Styles: `relative` (3 minutes ago) and `clock` (the time of day).
    """
    if value is None:
        return "–"
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    utc = moment.astimezone(UTC)
    return Markup('<time datetime="{}" data-time="{}">{} UTC</time>').format(
        utc.isoformat(timespec="milliseconds"), style, utc.strftime("%Y-%m-%d %H:%M")
    )


def format_elapsed(start: datetime | None, end: datetime | None, t: Translate) -> str | Markup:
    """Return the time between both; without an end, an element that the browser counts up."""
    if start is None:
        return "–"
    if end is not None:
        return format_duration((end - start).total_seconds(), t)
    utc = start.astimezone(UTC)
    # Not the time until now: a part would change each second.
    since = utc.isoformat(timespec="milliseconds")
    return Markup('<time data-since="{}">{} UTC –</time>').format(since, utc.strftime("%H:%M"))


def format_value(value: Any) -> str:
    """Return a value of a config on one line."""
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "–")
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return str(value)
