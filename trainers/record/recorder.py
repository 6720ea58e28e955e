"""Asks for the responses that are missing, in several threads, and ends when each row has one."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from trainers.configs.stages.migration.record import RecordConfig
from trainers.data.formats import Row
from trainers.openai_account.client import AccountClient
from trainers.openai_account.pace import PaceStopped
from trainers.record.answers import RequestShape, read_answer
from trainers.record.budget import Budget
from trainers.record.journal import RecordJournal
from trainers.runtime.events import EventWriter
from trainers.runtime.program import StopFlag, StopRequested

POLL_SECONDS = 0.2


class Recorder:
    """The state that the threads share."""

    def __init__(
        self, config: RecordConfig, rows: Mapping[int, Row], journal: RecordJournal, client: AccountClient
    ) -> None:
        self._rows, self._journal, self._client = rows, journal, client
        self._shape = RequestShape(config)
        self.budget = Budget(config)
        for number, answer in journal.answers.items():
            self.budget.add(answer, self._bound_cost(number))
        for number, count in journal.lost.items():
            self.budget.presume(count * self._bound_cost(number))
        self._failure: BaseException | None = None

    def record_all(
        self, concurrency: int, events: EventWriter, stop: StopFlag, report: Callable[[int], None]
    ) -> None:
        """Ask for every row without a response, and write progress.

        Raises StopRequested after the requests in progress have completed, CostLimitReached, or the errors of
        AccountClient.
        """
        missing = [number for number in self._rows if number not in self._journal.answers]
        with ThreadPoolExecutor(concurrency) as pool:
            waiting = {pool.submit(self._work, number) for number in missing}
            try:
                while waiting:
                    _, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                    report(len(self._journal.answers))
                    if stop.requested:
                        self._client.pace.stop()
            finally:
                self._client.pace.stop()
        for name in sorted(self._shape.dropped):
            events.write_warning(
                "parameter_not_offered",
                f"The model does not offer `{name}`, so responses are recorded without it.",
            )
        if self._failure is not None:
            raise self._failure
        if len(self._journal.answers) < len(self._rows):
            raise StopRequested

    def _work(self, number: int) -> None:
        if self._failure is not None:
            return
        try:
            self._record(number)
        except PaceStopped:
            return
        except Exception as error:  # Raised by `record_all`, after the other requests have completed.
            self._failure = self._failure or error
            self._client.pace.stop()

    def _record(self, number: int) -> None:
        cost = self._bound_cost(number)

        def lose() -> None:
            self._journal.lose(number)
            self.budget.repeat(cost)

        self.budget.reserve(cost)
        try:
            ask = _Once(lambda: self._journal.ask(number))
            while True:
                body = self._shape.build(self._rows[number])
                reply = self._client.post("/chat/completions", body, ask, lose)
                if not self._shape.drops(body, reply):
                    break
            answer = read_answer(reply)
            self._journal.add(number, answer)
            self.budget.add(answer, cost)
        finally:
            self.budget.release(cost)

    def _bound_cost(self, number: int) -> float:
        content = {name: self._rows[number].get(name) for name in ("messages", "tools")}
        return self.budget.bound(len(json.dumps(content, ensure_ascii=False).encode()))


class _Once:
    """A call that happens the first time only."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def __call__(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


def describe_answers(answers: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of answers by status."""
    counts: dict[str, int] = {}
    for answer in answers.values():
        counts[str(answer["status"])] = counts.get(str(answer["status"]), 0) + 1
    return counts


def journal_path(run_dir: Path) -> Path:
    """Return the file of the journal."""
    return run_dir / RecordConfig.completions_file
