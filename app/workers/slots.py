"""Slots: how many more runs each worker has room for; on the queue `cuda`, how many more GPUs."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Select, select
from sqlmodel import Session, col

from app.tables import HELD, Deployment, DeploymentStatus, Run, RunMember, Worker
from trainers.configs import EngineOptions, Queue

FreeSlots = Mapping[str, Mapping[Queue, int]]


def count_free_slots(session: Session, workers: Sequence[Worker]) -> FreeSlots:
    """Return the free slots of live workers, by the worker's id and the queue.

    The GPUs of a host are shared by its workers: what one holds is not free for the others.
    """
    used = _count_used_slots(session, [worker.id for worker in workers])
    free_gpus = {host: _count_free_gpus(group, used) for host, group in _group_by_host(workers).items()}
    return {
        worker.id: {
            Queue(queue): min(_count_slots(worker, queue), free_gpus[worker.host])
            if queue == Queue.cuda
            else _count_slots(worker, queue) - used[worker.id, Queue(queue)]
            for queue in worker.queues
        }
        for worker in workers
    }


def sum_slots(session: Session, workers: Sequence[Worker]) -> dict[Queue, tuple[int, int]]:
    """Return the slots of all live workers of each queue, and how many of them are free; GPUs count once."""
    used = _count_used_slots(session, [worker.id for worker in workers])
    groups = _group_by_host(workers).values()
    sums: dict[Queue, tuple[int, int]] = {}
    for queue in Queue:
        slots = {worker.id: _count_slots(worker, queue) for worker in workers if queue in worker.queues}
        free = sum(max(0, n - used[worker_id, queue]) for worker_id, n in slots.items())
        sums[queue] = sum(slots.values()), free
    n_gpus = sum(len(_list_gpu_ids(group)) for group in groups)
    sums[Queue.cuda] = n_gpus, sum(_count_free_gpus(group, used) for group in groups)
    return sums


def count_gpus(worker: Worker) -> int:
    """Return the GPUs of the largest run that the worker can execute: it can use one MIG device at most."""
    gpus = worker.hardware.get("gpus", [])
    n_whole = sum(not gpu.get("uuid", "").startswith("MIG-") for gpu in gpus)
    return n_whole or min(1, len(gpus))


def _count_used_slots(session: Session, worker_ids: Sequence[str]) -> Counter[tuple[str, Queue]]:
    used: Counter[tuple[str, Queue]] = Counter()
    runs = select(col(Run.worker_id), col(Run.queue), col(Run.device_count)).where(
        col(Run.worker_id).in_(worker_ids), col(Run.status).in_(HELD), col(Run.device_count) > 0
    )
    columns = col(RunMember.worker_id), col(Run.queue), col(Run.device_count)
    nodes = select_held_nodes(worker_ids).with_only_columns(*columns)
    for worker_id, queue, device_count in [*session.execute(runs), *session.execute(nodes)]:
        used[worker_id, queue] += device_count if queue is Queue.cuda else 1
    engines = select(Deployment).where(
        col(Deployment.worker_id).in_(worker_ids),
        col(Deployment.queue) == Queue.cuda,
        col(Deployment.status).in_([status for status in DeploymentStatus if status.held]),
    )
    # Deployments with one key share an engine.
    unique = {(d.worker_id, d.engine_key or d.id): d for d in session.scalars(engines)}
    for deployment in unique.values():
        assert deployment.worker_id is not None, "a held deployment has a worker"
        options = EngineOptions.model_validate(deployment.options)
        used[deployment.worker_id, Queue.cuda] += options.tensor_parallel
    return used


def select_held_nodes(worker_ids: Sequence[str]) -> Select[str, str]:
    """Select the ids of workers, and of the runs on several hosts that each holds without leading it."""
    return (
        select(col(RunMember.worker_id), col(Run.id))
        .join(Run, (col(Run.id) == col(RunMember.run_id)) & (col(Run.attempt) == col(RunMember.attempt)))
        .where(
            col(RunMember.worker_id).in_(worker_ids), col(RunMember.node_rank) > 0, col(Run.status).in_(HELD)
        )
    )


def _group_by_host(workers: Iterable[Worker]) -> dict[str, list[Worker]]:
    groups: dict[str, list[Worker]] = defaultdict(list)
    for worker in workers:
        groups[worker.host].append(worker)
    return groups


def _count_free_gpus(workers: Sequence[Worker], used: Counter[tuple[str, Queue]]) -> int:
    n_used = sum(used[worker.id, Queue.cuda] for worker in workers)
    return max(0, len(_list_gpu_ids(workers)) - n_used)


def _list_gpu_ids(workers: Iterable[Worker]) -> set[str]:
    return {
        gpu.get("uuid", f"{worker.id} {number}")
        for worker in workers
        if Queue.cuda in worker.queues
        for number, gpu in enumerate(worker.hardware.get("gpus", []))
    }


def _count_slots(worker: Worker, queue: str) -> int:
    # A worker of an earlier version has written none: it holds one run at a time.
    return worker.slots.get(queue, 1)
