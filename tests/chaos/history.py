"""The history: what the clients have sent and received, and what the API contains in the end."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Request(StrEnum):
    """What a client does with its job while it runs; the values are the API's actions."""

    complete = "complete"
    pause = "pause"
    cancel = "cancel"


@dataclass
class Submission:
    """One job as its client sees it; its name is its idempotency key."""

    key: str
    request: Request = Request.complete
    job_ids: set[str] = field(default_factory=set)
    """The ids with which the API has acknowledged it: more than one means that it was accepted twice."""

    @property
    def job_id(self) -> str | None:
        """The id of the job, once it was acknowledged."""
        return min(self.job_ids, default=None)


@dataclass
class History:
    """Everything that the clients know."""

    submissions: list[Submission] = field(default_factory=list)
    responses: Counter[str] = field(default_factory=Counter)
    """Number of responses by status; `no response` if the connection failed."""
    internal_errors: list[str] = field(default_factory=list)
    """Responses with status 500: faults for which the service has no name."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_response(self, status: str, description: str) -> None:
        """Count a response."""
        with self._lock:
            self.responses[status] += 1
            if status == "500":
                self.internal_errors.append(description)


@dataclass
class FinalState:
    """What the API contains after all faults have ended."""

    jobs: list[dict[str, Any]]
    """All jobs with their runs."""
    events: dict[str, list[dict[str, Any]]]
    """All events, by run."""
    models: Counter[str]
    """Number of models, by the run that produced them."""
    absent: list[str] = field(default_factory=list)
    """API processes that are not ready, and workers that are not alive."""
