"""The requests to a model name that the gateway of this process has served."""

from dataclasses import dataclass
from datetime import UTC, datetime

from serving.gateway.metrics import REQUEST_METRICS
from serving.gateway.request_context import CLIENT_CLOSED_REQUEST
from serving.gateway.traffic.counts import is_failure


@dataclass(frozen=True)
class ServedRequests:
    """Counts since the process started, of the numbers that `/metrics` gives."""

    since: datetime
    n_requests: int
    n_failed: int
    """Requests that the service or its engine did not serve, as promotions count them."""
    n_rejected: int
    """Requests that cannot be served as the client has sent them."""
    mean_seconds: float | None
    mean_first_byte_seconds: float | None
    completion_tokens: int


def count_requests(name: str) -> ServedRequests:
    """Return the counts of a deployment or of an alias; requests to an alias count for its name only."""
    since = datetime.fromtimestamp(REQUEST_METRICS.started_at, UTC)
    metrics = REQUEST_METRICS.models.get(name)
    if metrics is None:
        return ServedRequests(since, 0, 0, 0, None, None, 0)
    statuses = dict(metrics.statuses)
    duration, first_byte, _, completion = metrics.histograms
    n_failed = sum(count for status, count in statuses.items() if is_failure(status))
    n_refused = sum(count for status, count in statuses.items() if status >= 400) - n_failed
    return ServedRequests(
        since=since,
        n_requests=sum(statuses.values()),
        n_failed=n_failed,
        n_rejected=n_refused - statuses.get(CLIENT_CLOSED_REQUEST, 0),
        mean_seconds=duration.mean(),
        mean_first_byte_seconds=first_byte.mean(),
        completion_tokens=int(completion.total),
    )
