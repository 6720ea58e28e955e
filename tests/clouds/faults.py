"""What can happen to a request to a cloud, in words that the stand-ins of all clouds share."""

from collections import deque
from enum import StrEnum

from workers.clouds.protocol import CloudErrorKind


class Fault(StrEnum):
    """What happens to a request."""

    no_capacity = "no_capacity"
    quota = "quota"
    rate = "rate"
    unauthorized = "unauthorized"
    invalid = "invalid"
    server_error = "server_error"
    lost_request = "lost_request"  # The connection ends before the cloud has read the request.
    lost_response = "lost_response"  # It ends after the effect.
    garbled = "garbled"  # After the effect, the response is cut off or is the page of a proxy.

    @property
    def has_effect(self) -> bool:
        """Whether the cloud does what was asked."""
        return self in {Fault.lost_response, Fault.garbled}


EXPECTED = {
    Fault.no_capacity: CloudErrorKind.no_capacity,
    Fault.quota: CloudErrorKind.quota_exceeded,
    Fault.rate: CloudErrorKind.rate_limited,
    Fault.unauthorized: CloudErrorKind.unauthorized,
    Fault.invalid: CloudErrorKind.invalid_request,
    Fault.server_error: CloudErrorKind.unreachable,
    Fault.lost_request: CloudErrorKind.unreachable,
    Fault.lost_response: CloudErrorKind.unreachable,
    Fault.garbled: CloudErrorKind.unreachable,
}


class FaultPlan:
    """The faults of the next requests, by what they ask for."""

    def __init__(self) -> None:
        self._planned: dict[str, deque[Fault]] = {}
        self.requests: list[str] = []

    def add(self, action: str, *faults: Fault) -> None:
        """Let faults happen to the next requests with this action, one to each."""
        self._planned.setdefault(action, deque()).extend(faults)

    def take(self, action: str) -> Fault | None:
        """Count a request and return its fault."""
        self.requests.append(action)
        planned = self._planned.get(action)
        return planned.popleft() if planned else None

    def clear(self) -> None:
        """Forget faults and requests."""
        self._planned.clear()
        self.requests.clear()
