"""A run on several hosts is claimed by a whole group or not at all, and no two of them block each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from app.runs import lifecycle
from app.runs.claimable import FreeResources
from app.runs.groups.candidates import MAX_CANDIDATES, choose_group
from app.runs.groups.formation import NodeOffer, find_rank, offer, withdraw
from app.runs.groups.members import list_members, read_attempt, renew_member, update_member
from app.runs.lifecycle import StaleAttempt
from app.settings import Settings
from app.storage.database import database_now, read_session, transaction
from app.tables import Run, RunMember, RunStatus, Worker
from trainers.configs import Queue, StageKind

FREE = FreeResources(gpus=0, disk_bytes=1 << 40)
Make = Callable[..., Any]


def choose(settings: Settings, worker: Worker, left_out: tuple[str, ...] = ()) -> Run | None:
    """Return the run to which the worker would offer itself."""
    with read_session() as session:
        return choose_group(session, settings, worker.id, [Queue.cpu], list(StageKind), FREE, left_out).run


def make_offer(settings: Settings, worker: Worker, run: Run) -> Run | None:
    with transaction() as session:
        return offer(
            session, settings, NodeOffer(run.id, run.attempt + 1, worker.id, worker.node_address or "")
        )


@pytest.fixture
def workers(make_worker: Make) -> list[Worker]:
    return [make_worker(name=f"w{i}", host=f"h{i}", node_address=f"10.0.0.{i}") for i in range(3)]


def rank_of(run: Run, worker: Worker) -> int | None:
    with read_session() as session:
        return find_rank(session, NodeOffer(run.id, run.attempt, worker.id, ""))[1]


def test_the_last_of_the_needed_offers_claims_the_run_for_all(
    settings: Settings, make_job: Make, workers: list[Worker]
) -> None:
    (run,) = make_job(RunStatus.queued, nodes=2)
    assert make_offer(settings, workers[0], run) is None
    claimed = make_offer(settings, workers[1], run)
    assert claimed is not None and (claimed.status, claimed.attempt) == (RunStatus.running, 1)
    assert (claimed.worker_id, rank_of(claimed, workers[1]), rank_of(claimed, workers[0])) == (
        workers[1].id, 0, 1,
    )  # fmt: skip
    assert make_offer(settings, workers[2], run) is None, "the run has its group"
    assert rank_of(claimed, workers[2]) is None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_two_runs_that_three_workers_see_at_once_do_not_block_each_other(
    settings: Settings, make_job: Make, workers: list[Worker]
) -> None:
    first, second = (make_job(RunStatus.queued, nodes=2)[0] for _ in range(2))

    def act(worker: Worker) -> None:
        """Behave as a worker whose offers stand while others come and go."""
        for step in range(20):
            wanted = (first, second)[(step + workers.index(worker)) % 2]
            made = NodeOffer(wanted.id, 1, worker.id, worker.node_address or "")
            with transaction() as session:
                claimed = offer(session, settings, made)
            with transaction() as session:
                if claimed is not None or not withdraw(session, made):
                    return

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(act, workers))
    for worker in workers:
        for run in (first, second):
            make_offer(settings, worker, run)
    with read_session() as session:
        running = session.scalars(select(Run).where(col(Run.status) == RunStatus.running)).all()
        ranks = [m.node_rank for m in session.scalars(select(RunMember)) if m.node_rank is not None]
    assert len(running) >= 1 and sorted(ranks) == sorted([0, 1] * len(running))


def test_workers_offer_themselves_to_the_same_run_and_only_if_enough_are_free(
    settings: Settings, make_job: Make, make_worker: Make, workers: list[Worker]
) -> None:
    make_job(RunStatus.queued, nodes=4)
    (first,), (second,) = (make_job(RunStatus.queued, nodes=2) for _ in range(2))
    assert [choose(settings, worker) for worker in workers] == [first] * 3
    assert choose(settings, workers[0], left_out=(first.id,)) == second
    for worker in workers[1:]:
        make_job(RunStatus.running, worker_id=worker.id)
    assert choose(settings, workers[0]) is None
    make_worker(name="far", host="behind a tunnel")
    assert choose(settings, workers[0]) is None, "it has no address at which the others reach it"


def test_a_worker_offers_itself_only_to_runs_that_it_can_execute(
    settings: Settings, make_job: Make, make_worker: Make, workers: list[Worker]
) -> None:
    python = make_worker(name="p", host="p", node_address="10.0.0.9", capabilities=["python"])
    make_worker(name="q", host="q", node_address="10.0.0.8", capabilities=["python"])
    (run,) = make_job(RunStatus.queued, nodes=2, capability="python")
    assert choose(settings, python) == run
    assert choose(settings, workers[0]) is None, "it has no interpreter for the grader"


def test_workers_of_one_host_do_not_wait_for_each_other_at_its_gpus(
    settings: Settings, make_job: Make, make_worker: Make
) -> None:
    hardware = {"gpus": [{"uuid": f"GPU-{i}"} for i in range(4)]}
    one, *_ = [
        make_worker(host="h", node_address="10.0.0.1", queues=["cuda"], slots={"cuda": 4}, hardware=hardware)
        for _ in range(2)
    ]
    free = FreeResources(gpus=4, max_gpus=4, disk_bytes=1 << 40)
    runs = [make_job(RunStatus.queued, nodes=2, queue=Queue.cuda, device_count=n)[0] for n in (4, 2)]
    with read_session() as session:
        choice = choose_group(session, settings, one.id, [Queue.cuda], list(StageKind), free)
    assert choice.run == runs[1], "for the other run, both would need all GPUs of the host"
    for _ in range(2):
        make_worker(host="i", node_address="10.0.0.2", queues=["cuda"], slots={"cuda": 4}, hardware=hardware)
    with read_session() as session:
        choice = choose_group(session, settings, one.id, [Queue.cuda], list(StageKind), free)
    assert choice.run == runs[0], "there is another host"


def test_runs_that_need_more_workers_than_are_alive_do_not_hide_the_one_behind_them(
    settings: Settings, make_job: Make, workers: list[Worker]
) -> None:
    make_job(*[RunStatus.queued] * MAX_CANDIDATES, nodes=4)
    with transaction() as session:
        session.execute(update(Run).values(unmet_needs=0))
    (run,) = make_job(RunStatus.queued, nodes=2)
    assert choose(settings, workers[0]) == run


def test_a_run_that_lacks_workers_leaves_the_free_devices_of_a_host_to_others(
    settings: Settings, make_job: Make, workers: list[Worker]
) -> None:
    make_job(RunStatus.queued, nodes=2, queue=Queue.cuda, device_count=4)
    with transaction() as session:
        session.execute(update(Run).values(created_at=database_now(-3600)))
    (small,) = make_job(RunStatus.queued, queue=Queue.cuda)
    free = FreeResources(gpus=3, max_gpus=4, disk_bytes=1 << 40)
    with transaction() as session:
        claimed = lifecycle.claim(session, workers[0].id, [Queue.cuda], list(StageKind), 30, free, 60)
    assert claimed is not None and claimed.id == small.id


def test_an_offer_of_a_dead_worker_or_one_that_was_withdrawn_is_not_counted(
    settings: Settings, make_job: Make, workers: list[Worker]
) -> None:
    (run,) = make_job(RunStatus.queued, nodes=2)
    make_offer(settings, workers[0], run)
    with transaction() as session:
        assert withdraw(session, NodeOffer(run.id, 1, workers[0].id, ""))
    assert make_offer(settings, workers[1], run) is None
    with transaction() as session:
        dead = update(Worker).where(col(Worker.id) == workers[1].id)
        session.execute(dead.values(last_seen_at=database_now(-3600)))
    assert make_offer(settings, workers[2], run) is None
    assert make_offer(settings, workers[0], run) is not None


def test_a_member_without_heartbeat_is_lost_and_cannot_return(
    settings: Settings, make_job: Make, workers: list[Worker]
) -> None:
    (run,) = make_job(RunStatus.queued, nodes=2)
    make_offer(settings, workers[0], run)
    claimed = make_offer(settings, workers[1], run)
    assert claimed is not None
    lease = settings.lease_seconds
    with transaction() as session:
        renew_member(session, run.id, 1, workers[0].id, lease)
        assert [m.is_lost for m in list_members(session, run.id, 1, lease)] == [False, False]
        update_member(session, run.id, 1, workers[0].id, expires_at=database_now(0.1 * lease))
        assert [m.is_lost for m in list_members(session, run.id, 1, lease)] == [False, True]
        session.execute(update(Run).where(col(Run.id) == run.id).values(lease_expires_at=database_now(-1)))
        assert not read_attempt(session, run.id, 1, lease).has_valid_lease
    with transaction() as session:
        assert len(lifecycle.release_expired(session, 3)) == 1
    with transaction() as session, pytest.raises(StaleAttempt):
        renew_member(session, run.id, 1, workers[0].id, lease)
    with read_session() as session, pytest.raises(StaleAttempt):
        read_attempt(session, run.id, 1, lease)


def test_a_run_on_one_host_is_claimed_alone_and_one_on_several_is_not(
    settings: Settings, make_job: Make, workers: list[Worker]
) -> None:
    make_job(RunStatus.queued, nodes=2)
    (single,) = make_job(RunStatus.queued)
    with transaction() as session:
        claimed = lifecycle.claim(session, workers[0].id, [Queue.cpu], list(StageKind), 30, FREE)
    assert claimed is not None and claimed.id == single.id
