"""A thread that writes complete answers to the database, as many in one transaction as are waiting."""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from prometheus_client import Counter
from sqlalchemy.exc import DBAPIError

from app.completions.rows import build_row
from app.scheduling.incidents import Incident
from app.storage.database import DATABASE_UNAVAILABLE, transaction
from app.tables import StoredCompletion, StoredResponse
from serving.gateway.stored_answers.store import CompleteAnswer, StoreLoss

MAX_WAITING = 256
MAX_BATCH = 64
STOP_SECONDS = 5.0
LOSS_COUNT = Counter(
    "tunesmith_gateway_answers_lost",
    "Answers that were delivered but not stored, although their storage was requested, by reason.",
    ["reason"],
)

Item = tuple[CompleteAnswer, "Future[bool]"]
Row = StoredCompletion | StoredResponse


class AnswerWriter:
    """A bounded queue of answers and the thread that writes them, which starts with the first one.

    A failure of the database loses the answers of the transaction: they are counted and the incident is in
    the health report. Nothing is written later, since the client was told that the answer is not stored.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Item | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._incident = Incident(
            "storing answers", consequence="; they are delivered, but cannot be retrieved"
        )

    def submit(self, answer: CompleteAnswer) -> "Future[bool]":
        """Queue an answer; the result is whether it was stored. Cancelling it prevents that."""
        future: Future[bool] = Future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="answer-writer", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((answer, future))
        except queue.Full:
            LOSS_COUNT.labels(StoreLoss.queue_full).inc()
            future.set_result(False)
        return future

    def stop(self) -> None:
        """Write what waits, and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(STOP_SECONDS)

    def _write_all(self) -> None:
        for batch in self._take_batches():
            try:
                rows = [(row, future) for answer, future in batch if (row := self._build(answer, future))]
                self._write(rows)
            except Exception as error:
                # The thread writes what follows, and a client waits for each answer of this batch.
                self._incident.record(error)
                lost = [future for _, future in batch if not future.done()]
                LOSS_COUNT.labels(StoreLoss.failed).inc(len(lost))
                for future in lost:
                    future.set_result(False)

    def _take_batches(self) -> Iterator[list[Item]]:
        while (item := self._queue.get()) is not None:
            batch = [item]
            while len(batch) < MAX_BATCH and (more := self._take_waiting()) is not None:
                batch.append(more)
            yield [(answer, future) for answer, future in batch if future.set_running_or_notify_cancel()]

    def _take_waiting(self) -> Item | None:
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            return None
        if item is None:
            # The order to stop comes after this batch.
            self._queue.put(None)
        return item

    def _build(self, answer: CompleteAnswer, future: "Future[bool]") -> Row | None:
        try:
            return build_row(answer)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # What an engine sends is not under our control.
            self._incident.record(error)
            LOSS_COUNT.labels(StoreLoss.malformed).inc()
            future.set_result(False)
            return None

    def _write(self, rows: "Sequence[tuple[Row, Future[bool]]]") -> None:
        if not rows:
            return
        try:
            with transaction() as session:
                session.add_all([row for row, _ in rows])
        except (OSError, DBAPIError, *DATABASE_UNAVAILABLE) as error:
            if len(rows) > 1 and not isinstance(error, DATABASE_UNAVAILABLE):
                # One row that the database refuses must not lose the others.
                for row in rows:
                    self._write([row])
                return
            self._incident.record(error)
            LOSS_COUNT.labels(StoreLoss.database).inc(len(rows))
        else:
            self._incident.resolve()
            for _, future in rows:
                future.set_result(True)
            return
        for _, future in rows:
            future.set_result(False)
