"""The alternative without Tunesmith: a Celery task on Redis behind a FastAPI endpoint, all with defaults.

Each task appends the times of its post and its start, as two doubles, to the file `PLAIN_STARTS`.
`PLAIN_BROKER` is the broker's URL.
"""

import os
import struct
import time
from pathlib import Path

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

app = Celery("plain", broker=os.environ.get("PLAIN_BROKER"))
api = FastAPI()


class TaskRequest(BaseModel):
    """A request to start a task, with the time at which the client sent it."""

    sent_at: float


@app.task  # type: ignore[untyped-decorator]
def start(sent_at: float) -> None:
    """Record the start; a short write to a file opened for appending is atomic."""
    with Path(os.environ["PLAIN_STARTS"]).open("ab", buffering=0) as file:
        file.write(struct.pack("dd", sent_at, time.time()))


@api.post("/jobs", status_code=201)
def create_task(request: TaskRequest) -> dict[str, str]:
    """Send the task."""
    return {"id": start.delay(request.sent_at).id}


def read_starts(path: Path) -> list[tuple[float, float]]:
    """Return when each task was posted and when it started, in the order of the starts."""
    pairs = struct.iter_unpack("dd", path.read_bytes()) if path.exists() else []
    return sorted(((sent, started) for sent, started in pairs), key=lambda pair: pair[1])
