"""What a team would write instead: a Celery task on Redis, sent by a FastAPI endpoint, all with defaults.

Each task notes when it was posted and when it started, as two doubles appended to the file that
`PLAIN_STARTS` names; `PLAIN_BROKER` is the broker's URL.
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


class Order(BaseModel):
    """A post; the client says when it sent it."""

    sent_at: float


@app.task
def start(sent_at: float) -> None:
    """Note the start; so short a write to a file opened for appending is never torn."""
    with Path(os.environ["PLAIN_STARTS"]).open("ab", buffering=0) as file:
        file.write(struct.pack("dd", sent_at, time.time()))


@api.post("/jobs", status_code=201)
def post(order: Order) -> dict[str, str]:
    """Send the task."""
    return {"id": start.delay(order.sent_at).id}


def read_starts(path: Path) -> list[tuple[float, float]]:
    """When each task was posted and when it started, in the order of starts."""
    pairs = struct.iter_unpack("dd", path.read_bytes()) if path.exists() else []
    return sorted(((sent, started) for sent, started in pairs), key=lambda pair: pair[1])
