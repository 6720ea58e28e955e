"""The stream of a run's page: its parts, and its metrics and log lines by the number of their events."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from app.runs.curves import points
from app.runs.curves.points import LoggedPoint
from app.storage.database import read_session
from app.tables import EventType
from app.web.live import LiveView, Poll, make_event

EVENTS_PER_POLL = 500


class RunPoll(Poll[Any]):
    """The position of a stream: the parts that its page has, and the last event that it has sent."""

    def __init__(self, request: Request, view: LiveView[Any], version: str, run_id: str, after: int) -> None:
        super().__init__(request, view, version)
        self._run_id = run_id
        self._seq = after

    def read(self) -> Sequence[bytes]:
        """Return the new points and lines before the parts, so that a run that has ended is complete."""
        changes = super().read()
        with read_session() as session:
            events = points.list_new_events(session, self._run_id, self._seq, EVENTS_PER_POLL)
        if not events:
            return changes
        self._seq = events[-1].seq
        frames = []
        of_metrics = [event for event in events if event.type is EventType.metrics]
        found = [LoggedPoint(event.seq, event.step, event.created_at, event.data) for event in of_metrics]
        if found:
            frames.append(make_event("points", encode_points(found, None)))
        lines = [line for event in events if event.type is EventType.log for line in event.data["lines"]]
        if lines:
            frames.append(make_event("log", json.dumps(lines, ensure_ascii=False)))
        # The position is that of all of them: a stream that breaks before it repeats them.
        frames.append(make_event("position", id=str(self._seq)))
        return [*frames, *changes]


def encode_points(found: Sequence[LoggedPoint], following: int | None) -> str:
    """Return points as JSON: the names of the columns, and a row for each point.

    Each row begins with the number of the event, the step and the time in seconds.
    """
    names = list(dict.fromkeys(name for point in found for name in point.values))
    rows = [
        [
            point.seq,
            point.step,
            round(point.created_at.timestamp(), 2),
            *(_shorten(point.values.get(name)) for name in names),
        ]
        for point in found
    ]
    return json.dumps({"names": names, "rows": rows, "next": following}, separators=(",", ":"))


def _shorten(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")
