"""The live workers that can take a run, and what a run on several hosts waits for."""

from collections import defaultdict
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


def count_free_nodes(capable: Sequence[Worker], run: Run, slots: FreeSlots) -> int:
    """Return how many of the workers could start a node at once: some of one host may share its GPUs."""
    if run.queue is not Queue.cuda:
        return sum(slots[worker.id].get(run.queue, 0) > 0 for worker in capable)
    free: dict[tuple[str, frozenset[str]], list[int]] = defaultdict(list)
    for worker in capable:
        gpus = enumerate(worker.hardware.get("gpus", []))
        shared = frozenset(gpu.get("uuid", f"{worker.id} {number}") for number, gpu in gpus)
        free[worker.host, shared].append(slots[worker.id].get(run.queue, 0) // run.device_count)
    return sum(min(sum(n > 0 for n in nodes), max(nodes)) for nodes in free.values())


def count_nodes(capable: Sequence[Worker], run: Run) -> int:
    """Return how many of the workers could be a node at once if all were free."""
    return count_free_nodes(
        capable, run, {worker.id: {run.queue: count_gpus(worker) or 1} for worker in capable}
    )


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
    n_free = count_free_nodes(list_node_workers(workers, run), run, slots)
    if n_free >= run.nodes:
        return None
    needed = _describe_nodes(run.nodes, run.queue, run.device_count)
    return f"It needs {needed} at once; {n_free} {'is' if n_free == 1 else 'are'} free."


def _describe_nodes(nodes: int, queue: Queue, devices: int) -> str:
    each = f" with {devices} device{'s' if devices > 1 else ''} each" if queue is Queue.cuda else ""
    return f"{nodes} workers{each} on queue {queue}"
