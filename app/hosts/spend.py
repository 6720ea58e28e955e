"""What hosts cost, by the price of their offer and the time for which their machine is billed."""

import math
from collections.abc import Iterable
from datetime import datetime, timedelta

from app.tables import Host

# Lambda bills by the minute, and AWS at least one; each begun minute is counted.
BILLED_SECONDS = 60
HOUR_SECONDS = 3600


def compute_spend(host: Host, now: datetime) -> float:
    """Return the US dollars that a host has cost until now, or until its end."""
    if host.status.finished:
        return host.spend_usd
    # A request whose response was lost may have created a machine: it counts from the request.
    start = host.launched_at or host.attempted_at
    return 0.0 if start is None else price_duration(host.usd_per_hour, now - start)


def price_duration(usd_per_hour: float, duration: timedelta) -> float:
    """Return the price of a machine for this long, in US dollars."""
    minutes = max(1, math.ceil(duration.total_seconds() / BILLED_SECONDS))
    return usd_per_hour * minutes * BILLED_SECONDS / HOUR_SECONDS


def sum_spend(hosts: Iterable[Host], now: datetime) -> float:
    """Return the US dollars that hosts have cost until now."""
    return math.fsum(compute_spend(host, now) for host in hosts)
