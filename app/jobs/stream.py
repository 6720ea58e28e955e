"""The events of all runs of a job as one stream of server-sent events.

Events are numbered within their run only (decision 3), so the position in a job's stream is one number for
each run, in the order of the stages: `12.3` is after event 12 of the first run and event 3 of the second. It
is the `id` of each event, so a client that reconnects misses none and receives none twice.
"""

from app.http.errors import UnprocessableContent
from app.jobs import service
from app.jobs.graph.status import find_deciding_run
from app.runs.schemas import EventView, JobEventView
from app.runs.stream import MAX_EVENTS_PER_POLL, EventBatch, make_frame, read_events
from app.storage.database import read_session
from app.tables import Event, Run

Position = tuple[int, ...]


def parse_position(text: str, field: str) -> Position:
    """Return the position of an event's `id`; raises UnprocessableContent for a number that no event has."""
    position = tuple(map(int, text.split(".")))
    if max(position) >= 2**31:
        message = f"{text!r} is not the id of an event; leave it out to read from the first event."
        raise UnprocessableContent(message, fields=[{"field": field, "message": message}])
    return position


def poll_job_events(job_id: str, after: Position) -> EventBatch[Position]:
    """Return the next events of the job's runs, with the session closed again; raises JobNotFound.

    The events of one poll are in the order of the stages; those of stages that run side by side alternate
    from poll to poll.
    """
    frames: list[bytes] = []
    with read_session() as session:
        service.get_job(session, job_id)
        runs = service.list_runs(session, job_id)
        position = [*after, *(0 for _ in runs)][: len(runs)]
        for index, run in enumerate(runs):
            if run.event_seq > position[index] and len(frames) < MAX_EVENTS_PER_POLL:
                for event in read_events(session, run.id, position[index], MAX_EVENTS_PER_POLL - len(frames)):
                    position[index] = event.seq
                    frames.append(make_frame(".".join(map(str, position)), _event_view(event, run)))
        is_complete = all(
            run.status.finished and seq >= run.event_seq for run, seq in zip(runs, position, strict=True)
        )
        end = find_deciding_run(runs).status if runs and is_complete else None
    return EventBatch(frames, tuple(position), end)


def _event_view(event: Event, run: Run) -> JobEventView:
    return JobEventView(**EventView.model_validate(event).model_dump(), run_id=run.id, run=run.name)
