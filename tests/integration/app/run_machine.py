"""A state machine of runs: clients, workers, a broker and the clock act in any order on a real database.

The machine keeps a small model of what it has done. After each step it compares the rows with the model and
checks the invariants of `docs/architecture.md`; in the end every run that is not paused must finish.
"""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlmodel import col, select

from app.http.errors import Conflict
from app.jobs import actions
from app.runs import attempt_outcome, lifecycle
from app.runs.attempt_outcome import NewEvent
from app.runs.lifecycle import StaleAttempt
from app.scheduling import queue, sweeper
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Event, EventType, Job, RequiredEnd, Run, RunNeed, RunStatus
from tests.integration.app.machines import reset_database
from tests.integration.app.run_model import (
    HOST_CLOCK,
    OUTCOMES,
    ModelRun,
    ModelWorker,
    check_events,
    check_job,
)
from trainers.configs import Queue, StageKind

LEASE_SECONDS = 3000.0
# Sums of them differ from the lease by more than the time that an example itself takes, on any host.
SHORT_SECONDS, LONG_SECONDS = 1200.0, 4500.0
RENOTIFY_SECONDS, RETRY_DELAY_SECONDS = 1500.0, 1000.0
MAX_FAILURES = 3
# The clocks of the workers' hosts are wrong; the service must not depend on them.
CLOCK_ERRORS = (36_000.0, -36_000.0)
MAX_DRAIN_ROUNDS = 5
MAX_JOBS = 3
CONFIG = {"stage": "sft", "base": "org/base", "dataset": "train"}
CLOCK_COLUMNS = ("lease_expires_at", "claimable_at", "notified_at", "created_at")
Pick = st.integers(0, 1000)
# What follows from a gate takes several steps, so that gates must be frequent.
FREQUENT_OUTCOMES = [*sorted(OUTCOMES), "not_met", "not_met", "person"]
# How the last attempts of an example end, the first one last; None is success, as every attempt after them.
# Rules seldom end the runs of a whole job, and only a job that has ended can be retried.
ENDINGS = st.lists(st.sampled_from([None, "not_met", "person"]), max_size=8)
# For each stage: the earlier ones that it needs, as the bits of a number, and whether it runs when the last
# of them is a gate that is not met.
Graph = list[tuple[int, bool]]
GRAPHS = st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=1, max_size=4)


def make_needs(runs: Sequence[Run], graph: Graph) -> Iterator[RunNeed]:
    """Yield the needs of new runs."""
    for position, (bits, when_not_met) in enumerate(graph):
        needed = [runs[i] for i in range(position) if bits >> i & 1]
        for other in needed:
            is_gate = when_not_met and other is needed[-1]
            required = RequiredEnd.failed if is_gate else RequiredEnd.succeeded
            yield RunNeed(run_id=runs[position].id, needed_id=other.id, required_status=required)


class RunMachine(RuleBasedStateMachine):
    """Submissions, notifications, attempts, leases and actions on jobs, in any order."""

    settings: Settings

    @initialize(endings=ENDINGS)
    def start(self, endings: list[str | None]) -> None:
        """Empty the database, register the workers, and submit two jobs."""
        self.patch = pytest.MonkeyPatch()
        self.notifications: list[Queue] = []
        # The broker of the machine is a list, from which rules deliver, lose and repeat notifications.
        notifier = SimpleNamespace(request=self.notifications.append)
        self.patch.setattr(queue, "get_notifier", lambda: notifier)
        self.patch.setattr(attempt_outcome, "RETRY_DELAY_SECONDS", RETRY_DELAY_SECONDS)
        self.settings.renotify_seconds = RENOTIFY_SECONDS
        self.now = 0.0
        self.runs: dict[str, ModelRun] = {}
        self.jobs: list[str] = []
        self.stale: list[tuple[str, int]] = []
        self.endings = endings
        ids = reset_database(len(CLOCK_ERRORS))
        self.workers = [ModelWorker(*worker) for worker in zip(ids, CLOCK_ERRORS, strict=True)]
        # Hypothesis leaves out some rules in each example: without a run, nothing would happen.
        self._submit([(0, False), (1, False), (2, False)], 0)
        self._submit([(0, False), (1, True), (1, False)], 0)

    # Clients

    @precondition(lambda self: len(self.jobs) < MAX_JOBS)
    @rule(graph=GRAPHS, priority=st.integers(0, 1))
    def submit(self, graph: Graph, priority: int) -> None:
        self._submit(graph, priority)

    @precondition(lambda self: self.jobs)
    @rule(pick=Pick, name=st.sampled_from(["cancel", "pause", "resume", "retry"]))
    def act(self, pick: int, name: str) -> None:
        self._act(self.jobs[pick % len(self.jobs)], name)

    # The broker

    @precondition(lambda self: self.notifications)
    @rule()
    def lose_notifications(self) -> None:
        self.notifications.clear()

    @precondition(lambda self: self.notifications)
    @rule()
    def repeat_notification(self) -> None:
        self.notifications.append(self.notifications[-1])

    @precondition(lambda self: self.notifications and self._idle_workers())
    @rule(pick=Pick)
    def deliver_notification(self, pick: int) -> None:
        self.notifications.pop()
        idle = self._idle_workers()
        self._claim(idle[pick % len(idle)])

    # Workers

    @precondition(lambda self: self._busy_workers())
    @rule(pick=Pick)
    def renew(self, pick: int) -> None:
        worker = self._pick_busy(pick)
        run = self._model(worker)
        with self._expect_write(worker), transaction() as session:
            lifecycle.renew(session, self._run_id(worker), worker.attempt, LEASE_SECONDS)
            run.lease_ends = self.now + LEASE_SECONDS

    @precondition(lambda self: self._busy_workers())
    @rule(pick=Pick)
    def append_event(self, pick: int) -> None:
        worker = self._pick_busy(pick)
        event = NewEvent(EventType.log, {"lines": ["a line"]})
        with self._expect_write(worker), transaction() as session:
            lifecycle.append_events(session, self._run_id(worker), worker.attempt, [event, event])

    @precondition(lambda self: self._busy_workers())
    @rule(pick=Pick)
    def succeed(self, pick: int) -> None:
        self._succeed(self._pick_busy(pick))

    @precondition(lambda self: self._busy_workers())
    @rule(pick=Pick, outcome=st.sampled_from(FREQUENT_OUTCOMES))
    def end_attempt(self, pick: int, outcome: str) -> None:
        self._end_attempt(self._pick_busy(pick), outcome)

    @precondition(lambda self: self.stale)
    @rule(pick=Pick)
    def write_with_a_stale_attempt(self, pick: int) -> None:
        run_id, attempt = self.stale[pick % len(self.stale)]
        with transaction() as session:
            assert lifecycle.move(
                session, run_id, RunStatus.succeeded, guards=lifecycle.lease_guards(attempt)
            ) is None, "a stale attempt has written a status"  # fmt: skip
            with pytest.raises(StaleAttempt):
                lifecycle.renew(session, run_id, attempt, LEASE_SECONDS)

    # Time

    @rule()
    def advance_clock_within_leases(self) -> None:
        self._advance(SHORT_SECONDS)

    @rule()
    def advance_clock_past_leases(self) -> None:
        self._advance(LONG_SECONDS)

    @rule()
    def sweep(self) -> None:
        sweeper.sweep_once(self.settings)
        for run in self.runs.values():
            if run.is_held and run.lease_ends < self.now:
                run.is_held = False

    # Invariants

    @invariant()
    def rows_agree_with_the_model_and_with_each_other(self) -> None:
        with read_session() as session:
            rows = session.exec(select(Run).order_by(col(Run.job_id), col(Run.position))).all()
            events = session.exec(select(Event).order_by(col(Event.run_id), col(Event.seq))).all()
            jobs = session.exec(select(Job)).all()
            needs = session.exec(select(RunNeed)).all()
        for row in rows:
            self._check_run(row)
            check_events(row, [event for event in events if event.run_id == row.id])
        for job in jobs:
            of_job = [row for row in rows if row.job_id == job.id]
            check_job(job, of_job, [n for n in needs if n.run_id in {row.id for row in of_job}])

    def _check_run(self, row: Run) -> None:
        run = self.runs[row.id]
        assert row.attempt == run.attempt, "each claim is one attempt"
        assert row.status.held == run.is_held, f"{row.status}, held: {run.is_held}"
        assert (row.worker_id is not None) == (row.lease_expires_at is not None) == row.status.held
        assert run.final in (None, row.status), f"the final status {run.final} became {row.status}"
        if row.status.finished:
            run.final = row.status

    def teardown(self) -> None:
        """Check that notifications and sweeps alone finish every run, also after a retry of each job."""
        try:
            if hasattr(self, "runs"):
                self._drain()
                self.rows_agree_with_the_model_and_with_each_other()
                for job_id in self.jobs:
                    self._act(job_id, "retry")
                self.rows_agree_with_the_model_and_with_each_other()
                self._drain()
        finally:
            if hasattr(self, "patch"):
                self.patch.undo()

    def _drain(self) -> None:
        for job_id in self.jobs:
            self._act(job_id, "resume")
        self.notifications.clear()
        for _ in range(MAX_DRAIN_ROUNDS):
            if not self._unfinished():
                return
            self._advance(LONG_SECONDS)
            self.sweep()
            while self.notifications and self._idle_workers():
                self.notifications.pop()
                self._claim(self._idle_workers()[0])
            while busy := self._busy_workers():
                self._end(busy[0], self.endings.pop() if self.endings else None)
        raise AssertionError(f"stuck: {self._unfinished()}")

    def _unfinished(self) -> Sequence[Run]:
        with read_session() as session:
            return [
                run for run in session.exec(select(Run)).all()
                if not run.status.finished and run.status is not RunStatus.paused
            ]  # fmt: skip

    def _submit(self, graph: Graph, priority: int) -> None:
        job = Job(name="job")
        with transaction() as session:
            session.add(job)
            session.flush()
            runs = [
                Run(job_id=job.id, position=i, name=f"s{i}", stage=StageKind.sft, queue=Queue.cpu,
                    priority=priority, config=CONFIG)
                for i in range(len(graph))
            ]  # fmt: skip
            lifecycle.create_runs(session, runs, list(make_needs(runs, graph)))
        self.jobs.append(job.id)
        self.runs |= {run.id: ModelRun() for run in runs}

    def _act(self, job_id: str, name: str) -> None:
        with contextlib.suppress(Conflict), transaction() as session:
            # An installation without keys, whose requests have an empty one.
            keys = [""] if name in ("resume", "retry") else []
            getattr(actions, name)(session, job_id, *keys)
            if name == "retry":
                for run in session.exec(select(Run).where(Run.job_id == job_id)).all():
                    if self.runs[run.id].final is not RunStatus.succeeded and not run.handled:
                        self.runs[run.id].final = None

    def _claim(self, worker: ModelWorker) -> None:
        """Claim a run as a worker does that is notified, or that has just ended a run."""
        with self._acting(worker), transaction() as session:
            run = lifecycle.claim(session, worker.worker_id, [Queue.cpu], list(StageKind), LEASE_SECONDS)
        if run is None:
            return
        model = self.runs[run.id]
        assert not model.is_held, "a run that another attempt holds was claimed"
        model.attempt += 1
        model.is_held, model.lease_ends = True, self.now + LEASE_SECONDS
        worker.run_id, worker.attempt = run.id, run.attempt

    def _end(self, worker: ModelWorker, ending: str | None) -> None:
        if ending is None:
            self._succeed(worker)
        else:
            self._end_attempt(worker, ending)

    def _succeed(self, worker: ModelWorker) -> None:
        with self._acting(worker), transaction() as session:
            moved = lifecycle.move(
                session,
                self._run_id(worker),
                RunStatus.succeeded,
                guards=lifecycle.lease_guards(worker.attempt),
            )
        assert (moved is not None) == self._is_live(worker), "only the attempt that holds a run can finish it"
        self._release(worker, moved)

    def _end_attempt(self, worker: ModelWorker, outcome: str) -> None:
        with self._acting(worker), transaction() as session:
            ended = lifecycle.end_attempt(
                session,
                self._run_id(worker),
                OUTCOMES[outcome],
                lifecycle.lease_guards(worker.attempt),
                MAX_FAILURES,
            )
        assert (ended is not None) == self._is_live(worker), "an attempt ends once, while it holds the run"
        self._release(worker, ended)

    def _release(self, worker: ModelWorker, ended: Run | None) -> None:
        """Forget the run of a worker, which takes the next one."""
        if ended is not None:
            self._model(worker).is_held = False
        self.stale.append((self._run_id(worker), worker.attempt))
        worker.run_id = None
        self._claim(worker)

    @contextlib.contextmanager
    def _expect_write(self, worker: ModelWorker) -> Iterator[None]:
        """Expect that the block writes if the worker's attempt is live, and raises StaleAttempt otherwise."""
        is_live = self._is_live(worker)
        try:
            with self._acting(worker):
                yield
        except StaleAttempt:
            assert not is_live, "the attempt that holds the run was refused"
            self._release(worker, None)
        else:
            assert is_live, "a stale attempt has written"

    @contextlib.contextmanager
    def _acting(self, worker: ModelWorker) -> Iterator[None]:
        HOST_CLOCK.error = worker.clock_error
        try:
            yield
        finally:
            HOST_CLOCK.error = 0.0

    def _advance(self, seconds: float) -> None:
        """Advance the database's clock: every time in it is that much longer ago."""
        self.now += seconds
        with transaction() as session:
            for run in session.exec(select(Run)).all():
                for column in CLOCK_COLUMNS:
                    if (value := getattr(run, column)) is not None:
                        setattr(run, column, value - timedelta(seconds=seconds))

    def _is_live(self, worker: ModelWorker) -> bool:
        run = self._model(worker)
        return run.is_held and run.attempt == worker.attempt and self.now < run.lease_ends

    def _model(self, worker: ModelWorker) -> ModelRun:
        return self.runs[self._run_id(worker)]

    @staticmethod
    def _run_id(worker: ModelWorker) -> str:
        assert worker.run_id is not None
        return worker.run_id

    def _idle_workers(self) -> list[ModelWorker]:
        return [worker for worker in self.workers if worker.run_id is None]

    def _busy_workers(self) -> list[ModelWorker]:
        return [worker for worker in self.workers if worker.run_id is not None]

    def _pick_busy(self, pick: int) -> ModelWorker:
        busy = self._busy_workers()
        return busy[pick % len(busy)]
