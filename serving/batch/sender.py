"""Sends all requests of a batch, and ends when each has an answer, or when it is time to stop."""

import asyncio
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from serving.batch.engine_table import EngineTable
from serving.batch.files import STATE, write_replaced
from serving.batch.input_file import BatchInput
from serving.batch.journal import Journal, failure_line
from serving.batch.lane import Lane, make_line_id
from serving.gateway.connection_pool import ConnectionPool
from trainers.configs.stages.serving.batch import BatchConfig
from trainers.evaluation.checkpoints import publish_completions
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopFlag

# A long completion on a busy engine.
READ_TIMEOUT_SECONDS = 3600.0
POLL_SECONDS = 0.2
STATE_SECONDS = 1.0
CHECKPOINT_SECONDS = 60.0
# A checkpoint copies the whole journal: with this growth between two, all of them together copy eleven times
# as much as the last one, and a host that is lost costs a tenth of the work.
CHECKPOINT_GROWTH = 1.1
# How long requests in progress may still complete.
GRACE_SECONDS = 10.0
SHUTDOWN_GRACE_SECONDS = 2.0
EXPIRED = "This request could not be executed before the completion window expired."


class Outcome(StrEnum):
    """How a batch ends."""

    completed = "completed"
    cancelled = "cancelled"
    expired = "expired"
    interrupted = "interrupted"  # The program must stop; a later attempt continues.


class BatchSender:
    """The state of the program while it sends."""

    def __init__(
        self,
        config: BatchConfig,
        lines: BatchInput,
        journal: Journal,
        engines: EngineTable,
        events: EventWriter,
        run_dir: Path,
        stop: StopFlag,
    ) -> None:
        self._config, self._lines, self._journal = config, lines, journal
        self._engines, self._events, self._run_dir, self._stop = engines, events, run_dir, stop
        self._batch_id = config.batch or str(lines.path)
        self._reported_at = self._saved_at = time.monotonic()
        self._saved_bytes = 0
        self._checkpoint: asyncio.Task[None] | None = None

    async def send_all(self) -> Outcome:
        """Send the requests without an answer; return how the batch ends. The journal is then closed."""
        pool = ConnectionPool(READ_TIMEOUT_SECONDS)
        writing = asyncio.create_task(self._journal.write_groups())
        lanes = {asyncio.create_task(lane.run()): lane for lane in self._make_lanes(pool)}
        try:
            outcome = await self._follow(lanes, writing)
            await self._finish_requests(lanes, outcome)
            if all(self._journal.done):
                outcome = Outcome.completed
            elif outcome is Outcome.expired:
                await self._fail_missing()
        finally:
            helpers = [writing, *([self._checkpoint] if self._checkpoint is not None else [])]
            for task in (*lanes, *helpers):
                task.cancel()
            await asyncio.gather(*lanes, *helpers, return_exceptions=True)
            await pool.aclose()
            self._journal.close()
        return outcome

    def _make_lanes(self, pool: ConnectionPool) -> list[Lane]:
        lanes = []
        for model_number, model in enumerate(self._lines.models):
            if next(self._list_missing(model_number), None) is not None:
                numbers = self._list_missing(model_number)
                lanes.append(
                    Lane(
                        model,
                        numbers,
                        self._lines,
                        self._journal,
                        self._engines,
                        pool,
                        self._batch_id,
                        self._config.concurrency,
                    )
                )
        return lanes

    def _list_missing(self, model_number: int) -> Iterator[int]:
        for number, owner in enumerate(self._lines.model_numbers):
            if owner == model_number and not self._journal.done[number]:
                yield number

    async def _follow(self, lanes: dict[asyncio.Task[None], Lane], writing: asyncio.Task[None]) -> Outcome:
        """Wait for the lanes, report progress, and return early when the batch must stop."""
        left = set(lanes)
        while left:
            self._report([lanes[task].model for task in left])
            if (outcome := self._find_end()) is not None:
                return outcome
            done, _ = await asyncio.wait(
                {*left, writing}, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED"
            )
            for task in done:
                task.result()
            left -= done
            self._engines.refresh()
        return Outcome.completed

    def _find_end(self) -> Outcome | None:
        if self._stop.requested:
            return Outcome.interrupted
        control = self._engines.control
        if control.cancelled:
            return Outcome.cancelled
        if control.expires_at is not None and time.time() >= control.expires_at:
            return Outcome.expired
        return None

    async def _finish_requests(self, lanes: dict[asyncio.Task[None], Lane], outcome: Outcome) -> None:
        """Start no request, and let those in progress complete for a moment."""
        for lane in lanes.values():
            lane.stopping = True
        seconds = SHUTDOWN_GRACE_SECONDS if outcome is Outcome.interrupted else GRACE_SECONDS
        until = time.monotonic() + seconds
        waiting = set(lanes)
        while (
            waiting
            and time.monotonic() < until
            and (outcome is Outcome.interrupted or not self._stop.requested)
        ):
            _, waiting = await asyncio.wait(waiting, timeout=POLL_SECONDS)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._journal.flush()

    async def _fail_missing(self) -> None:
        with self._lines.path.open("rb") as file:
            for number in range(len(self._lines)):
                if not self._journal.done[number]:
                    custom_id = self._lines.read(file, number).custom_id
                    line_id = make_line_id(self._batch_id, custom_id)
                    await self._journal.add(
                        number, failure_line(line_id, custom_id, "batch_expired", EXPIRED)
                    )

    def _report(self, models: list[str]) -> None:
        """Write the state and the progress, and now and then a checkpoint for another worker."""
        now = time.monotonic()
        if now - self._reported_at < STATE_SECONDS:
            return
        self._reported_at = now
        state = self._journal.state
        state.models = sorted(models)
        write_replaced(self._run_dir / STATE, state)
        self._events.write_progress(state.completed + state.failed, state.total)
        size = self._journal.path.stat().st_size
        is_running = self._checkpoint is not None and not self._checkpoint.done()
        if (
            not is_running
            and now - self._saved_at >= CHECKPOINT_SECONDS
            and size > CHECKPOINT_GROWTH * self._saved_bytes
        ):
            self._saved_at, self._saved_bytes = now, size
            self._checkpoint = asyncio.create_task(asyncio.to_thread(publish_completions, self._journal.path))
