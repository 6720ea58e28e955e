"""The life cycle of a run: which writes are allowed, and when."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from threading import Barrier

import pytest
from sqlmodel import Session, col, select

from app.deployments.create import insert_deployment
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome, NewEvent
from app.runs.claimable import FreeResources
from app.runs.lifecycle import StaleAttempt
from app.runs.transitions import TRANSITIONS
from app.settings import Settings
from app.storage.database import get_engine, read_session, transaction
from app.tables import Deployment, Event, EventType, Run, RunStatus, Worker
from trainers.configs import EngineKind, Queue, StageKind
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError

Make = Callable[..., list[Run]]
MakeWorker = Callable[..., Worker]
LEASE_SECONDS = 30.0


def claim(worker: Worker, lease_seconds: float = LEASE_SECONDS) -> Run | None:
    with transaction() as session:
        return lifecycle.claim(session, worker.id, [Queue.cpu], list(StageKind), lease_seconds)


def events(session: Session, run: Run) -> list[Event]:
    return list(session.exec(select(Event).where(Event.run_id == run.id).order_by(col(Event.seq))))


def test_every_transition_outside_the_table_is_rejected(make_job: Make) -> None:
    refused = [pair for pair in product(RunStatus, RunStatus) if pair[1] not in TRANSITIONS[pair[0]]]
    runs = make_job(*(source for source, _ in refused))
    with transaction() as session:
        moved = [lifecycle.move(session, run.id, to) for run, (_, to) in zip(runs, refused, strict=True)]
    assert moved == [None] * len(refused)


def test_every_transition_in_the_table_writes_an_event(make_job: Make) -> None:
    allowed = [(source, to) for source in RunStatus for to in TRANSITIONS[source]]
    for source, to in allowed:
        (run,) = make_job(source)
        with transaction() as session:
            moved = lifecycle.move(session, run.id, to)
            assert moved is not None and moved.status is to
            assert [event.data["status"] for event in events(session, run)] == [to]


def test_racing_workers_claim_each_run_once(make_job: Make, make_worker: MakeWorker) -> None:
    workers = [make_worker() for _ in range(4)]
    wanted = {make_job(RunStatus.queued)[0].id for _ in range(6)}
    ready = Barrier(len(workers))

    def claim_all(worker: Worker) -> list[str]:
        ready.wait()
        return [run.id for run in iter(lambda: claim(worker), None)]

    with ThreadPoolExecutor(len(workers)) as pool:
        claimed = [run_id for ids in pool.map(claim_all, workers) for run_id in ids]
    assert sorted(claimed) == sorted(wanted)


def test_higher_priority_is_claimed_first_then_age(make_job: Make, make_worker: MakeWorker) -> None:
    older, younger = make_job(RunStatus.queued)[0], make_job(RunStatus.queued)[0]
    urgent = make_job(RunStatus.queued, priority=1)[0]
    worker = make_worker()
    assert [run.id for run in iter(lambda: claim(worker), None)] == [urgent.id, older.id, younger.id]


def test_a_stage_is_claimed_only_after_the_previous_one_has_succeeded(
    make_job: Make, make_worker: MakeWorker
) -> None:
    first, second = make_job(RunStatus.running, RunStatus.queued)
    worker = make_worker()
    assert claim(worker) is None
    with transaction() as session:
        lifecycle.move(session, first.id, RunStatus.succeeded)
    claimed = claim(worker)
    assert claimed is not None and claimed.id == second.id


def test_an_attempt_whose_lease_has_ended_writes_nothing(make_job: Make, make_worker: MakeWorker) -> None:
    make_job(RunStatus.queued)
    run = claim(make_worker(), lease_seconds=-1)
    assert run is not None
    with transaction() as session:
        with pytest.raises(StaleAttempt):
            lifecycle.append_events(
                session, run.id, run.attempt, [NewEvent(EventType.log, {"lines": ["late"]})]
            )
        assert (
            lifecycle.move(session, run.id, RunStatus.succeeded, guards=lifecycle.lease_guards(run.attempt))
            is None
        )
    with read_session() as session:
        assert [event.type for event in events(session, run)] == [EventType.status]


def test_an_earlier_attempt_writes_nothing_while_a_later_holds_the_run(
    make_job: Make, make_worker: MakeWorker
) -> None:
    make_job(RunStatus.queued)
    stale = claim(make_worker(), lease_seconds=-1)
    with transaction() as session:
        lifecycle.release_expired(session, max_failures=3)
    current = claim(make_worker())
    assert stale is not None and current is not None and current.attempt == stale.attempt + 1
    with transaction() as session, pytest.raises(StaleAttempt):
        lifecycle.renew(session, stale.id, stale.attempt, LEASE_SECONDS)


class Failure(TunesmithError):
    """An error with any code."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__("It failed.")
        self.code = code


@pytest.mark.parametrize(
    ("code", "after_running", "after_pausing"),
    [
        (None, RunStatus.queued, RunStatus.paused),
        (ErrorCode.program_killed, RunStatus.queued, RunStatus.paused),
        (ErrorCode.disk_full, RunStatus.queued, RunStatus.paused),
        (ErrorCode.out_of_memory, RunStatus.queued, RunStatus.paused),
        (ErrorCode.config_invalid, RunStatus.failed, RunStatus.failed),
    ],
)
def test_the_end_of_an_attempt_depends_on_the_error_and_on_what_was_requested(
    make_job: Make, code: ErrorCode | None, after_running: RunStatus, after_pausing: RunStatus
) -> None:
    sources = (RunStatus.running, RunStatus.pausing, RunStatus.cancelling)
    runs = [make_job(source)[0] for source in sources]
    error = Failure(code) if code is not None else None
    smaller = {"micro_batch_size": 1} if code is ErrorCode.out_of_memory else None
    needed = 1 if code is ErrorCode.disk_full else None
    with transaction() as session:
        outcome = AttemptOutcome(error, smaller_config=smaller, needed_disk_bytes=needed)
        ended = [lifecycle.end_attempt(session, run.id, outcome, (), max_failures=3) for run in runs]
    statuses = [run.status for run in ended if run is not None]
    assert statuses == [after_running, after_pausing, RunStatus.cancelled]
    with read_session() as session:
        assert [len(events(session, run)) for run in runs] == [1, 1, 1]


def test_a_run_fails_after_too_many_failures_and_cancels_the_next_stage(make_job: Make) -> None:
    lapsed = datetime.now(UTC) - timedelta(hours=1)
    make_job(RunStatus.running, RunStatus.queued, lease_expires_at=lapsed, failure_count=3)
    with transaction() as session:
        (released,) = lifecycle.release_expired(session, max_failures=3)
    with read_session() as session:
        runs = session.exec(select(Run).order_by(col(Run.position))).all()
    assert [run.status for run in runs] == [RunStatus.failed, RunStatus.cancelled]
    assert released.error is not None and released.error["code"] == "lease_lost"


def test_racing_requests_for_one_name_leave_one_live_deployment(settings: Settings) -> None:
    get_engine()  # Six threads would each create it.
    ready = Barrier(6)

    def ask(number: int) -> str:
        ready.wait()
        with transaction() as session:
            asked = Deployment(name="one", base=f"hub/{number}", engine=EngineKind.hf, queue=Queue.cpu)
            return insert_deployment(session, asked).id

    with ThreadPoolExecutor(6) as pool:
        asked = set(pool.map(ask, range(6)))
    with read_session() as session:
        found = session.exec(select(Deployment)).all()
    assert {deployment.id for deployment in found} == asked
    assert sorted(deployment.status for deployment in found) == ["queued", *["stopped"] * 5]


def test_events_of_one_run_are_numbered_without_gaps_by_racing_writers(
    make_job: Make, make_worker: MakeWorker
) -> None:
    make_job(RunStatus.queued)
    run = claim(make_worker())
    assert run is not None

    def write(number: int) -> None:
        with transaction() as session:
            lifecycle.append_events(
                session, run.id, run.attempt, [NewEvent(EventType.log, {"lines": [str(number)]})]
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    with read_session() as session:
        assert [event.seq for event in events(session, run)] == list(range(1, 26))


def test_a_run_for_more_gpus_than_are_free_is_left_to_others(make_job: Make, make_worker: MakeWorker) -> None:
    (large,), (small,) = make_job(RunStatus.queued), make_job(RunStatus.queued)
    worker = make_worker()
    with transaction() as session:
        for run, devices in ((large, 8), (small, 2)):
            found = session.get_one(Run, run.id)
            found.queue, found.device_count = Queue.cuda, devices
    claimed = []
    for free in (1, 4, 4, 8):
        with transaction() as session:
            result = lifecycle.claim(
                session, worker.id, [Queue.cuda], list(StageKind), LEASE_SECONDS, FreeResources(free, 0)
            )
            claimed.append(result.id if result else None)
    assert claimed == [None, small.id, None, large.id]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_claim_does_not_wait_for_another_one(make_job: Make, make_worker: MakeWorker) -> None:
    first, second = make_job(RunStatus.queued)[0], make_job(RunStatus.queued)[0]
    worker = make_worker()
    with transaction() as session:
        claimed = lifecycle.claim(session, worker.id, [Queue.cpu], list(StageKind), LEASE_SECONDS)
        assert claimed is not None and claimed.id == first.id
        other = claim(worker)
    assert other is not None and other.id == second.id


def claim_on_gpus(worker: Worker, free: int, max_overtake_seconds: float) -> str | None:
    with transaction() as session:
        claimed = lifecycle.claim(
            session,
            worker.id,
            [Queue.cuda],
            list(StageKind),
            LEASE_SECONDS,
            FreeResources(free, 0, max_gpus=8),
            max_overtake_seconds,
        )
    return claimed.id if claimed is not None else None


def test_a_run_that_waits_too_long_for_gpus_is_not_overtaken(make_job: Make, make_worker: MakeWorker) -> None:
    cuda = {"queue": Queue.cuda}
    (older,) = make_job(RunStatus.queued, **cuda)
    (large,) = make_job(RunStatus.queued, **cuda, device_count=8)
    make_job(RunStatus.queued, **cuda, device_count=9)
    (younger,) = make_job(RunStatus.queued, **cuda)
    (deploy,) = make_job(RunStatus.queued, **cuda, device_count=0)
    worker = make_worker()
    assert claim_on_gpus(worker, 4, max_overtake_seconds=-1) == older.id
    assert claim_on_gpus(worker, 4, max_overtake_seconds=-1) == deploy.id
    assert claim_on_gpus(worker, 4, max_overtake_seconds=-1) is None, "4 GPUs are kept for the large run"
    assert claim_on_gpus(worker, 4, max_overtake_seconds=600) == younger.id
    assert claim_on_gpus(worker, 8, max_overtake_seconds=-1) == large.id


def test_on_a_full_queue_only_a_run_without_a_device_starts(make_job: Make, make_worker: MakeWorker) -> None:
    make_job(RunStatus.queued)
    (deploy,) = make_job(RunStatus.queued, device_count=0)
    worker, free = make_worker(), FreeResources(0, 0, full_queues=frozenset({Queue.cpu}))
    with transaction() as session:
        claimed = lifecycle.claim(session, worker.id, [Queue.cpu], list(StageKind), LEASE_SECONDS, free)
        assert claimed is not None and claimed.id == deploy.id
        assert lifecycle.claim(session, worker.id, [Queue.cpu], list(StageKind), LEASE_SECONDS, free) is None


def test_a_worker_of_several_queues_claims_by_priority_and_age_over_all(
    make_job: Make, make_worker: MakeWorker
) -> None:
    older = make_job(RunStatus.queued, queue=Queue.mlx)[0]
    younger = make_job(RunStatus.queued)[0]
    urgent = make_job(RunStatus.queued, queue=Queue.mlx, priority=1)[0]
    worker, claimed = make_worker(), []
    for _ in range(4):
        with transaction() as session:
            run = lifecycle.claim(session, worker.id, list(Queue), list(StageKind), LEASE_SECONDS)
            claimed.append(run and run.id)
    assert claimed == [urgent.id, older.id, younger.id, None]
