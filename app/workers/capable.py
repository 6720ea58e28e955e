"""The live workers that can take a run, and what a run on several hosts waits for."""

from collections.abc import Sequence

from app.tables import Run, Worker
from app.workers.slots import FreeSlots, count_gpus
from trainers.configs import Queue, StageKind
from trainers.configs.engines import split_capabilities

NODE_HINT = (
    "Set TUNESMITH_NODE_ADDRESS on such a host to an address at which the others reach it, and restart its "
    "worker."
)


def filter_capable_workers(
    workers: Sequence[Worker],
    queue: Queue,
    stage: StageKind,
    device_count: int = 0,
    capability: str | None = None,
    job_id: str | None = None,
) -> list[Worker]:
    """Return the workers that serve the queue and can run the stage.

    They have enough GPUs on `cuda`, and the capabilities that are needed, joined by `+`. With `job_id` only
    those count whose host was launched for that job, without it only those that serve all.
    """
    needed = split_capabilities(capability)
    n_gpus = device_count if queue is Queue.cuda else 0
    return [
        worker
        for worker in workers
        if worker.job_id == job_id
        and queue in worker.queues
        and stage in worker.stages
        and count_gpus(worker) >= n_gpus
        and needed <= set(worker.capabilities)
    ]


def list_node_workers(workers: Sequence[Worker], run: Run) -> list[Worker]:
    """Return the workers that could be a node of a run on several hosts, busy or not."""
    capable = filter_capable_workers(workers, run.queue, run.stage, run.device_count, run.capability)
    return [worker for worker in capable if worker.node_address]


def has_room(worker: Worker, run: Run, slots: FreeSlots) -> bool:
    """Return whether the worker has free devices for a node of the run."""
    n_needed = run.device_count if run.queue is Queue.cuda else 1
    return slots[worker.id].get(run.queue, 0) >= n_needed


def explain_missing_nodes(capable: Sequence[Worker], queue: Queue, nodes: int, devices: int) -> str | None:
    """Return why the capable workers are too few for a run on several hosts; None if there are enough."""
    reachable = [worker for worker in capable if worker.node_address]
    if nodes == 1 or len(reachable) >= nodes:
        return None
    hidden = len(capable) - len(reachable)
    lack = f" {hidden} more {'has' if hidden == 1 else 'have'} no address for the others. {NODE_HINT}"
    count = f"{len(reachable)} {'is' if len(reachable) == 1 else 'are'} alive."
    start = f" Start another one on a host of its own: python -m workers --queue {queue}"
    return f"It needs {_describe_nodes(nodes, queue, devices)}; {count}{lack if hidden else start}"


def explain_busy_nodes(workers: Sequence[Worker], run: Run, slots: FreeSlots) -> str | None:
    """Return why a run on several hosts waits although there are enough workers; None if enough are free."""
    free = [worker for worker in list_node_workers(workers, run) if has_room(worker, run, slots)]
    if len(free) >= run.nodes:
        return None
    needed = _describe_nodes(run.nodes, run.queue, run.device_count)
    return f"It needs {needed} at once; {len(free)} {'is' if len(free) == 1 else 'are'} free."


def _describe_nodes(nodes: int, queue: Queue, devices: int) -> str:
    each = f" with {devices} device{'s' if devices > 1 else ''} each" if queue is Queue.cuda else ""
    return f"{nodes} workers{each} on queue {queue}"
