"""A stage that names no queue goes to the best hardware that a live worker has, and says why."""

import pytest

from app.tables import Worker
from app.workers.host_hardware import HostHardware
from app.workers.queue_choice import choose_queue
from trainers.configs import Queue, StageKind, parse_stage

H200 = {"name": "NVIDIA H200", "uuid": "GPU-1", "memory_bytes": 1}
CPU_HOST = HostHardware((Queue.cpu,))


def worker(*queues: Queue, gpus: int = 0, capabilities: tuple[str, ...] = (), **hardware: object) -> Worker:
    return Worker(
        name="here", host="here", pid=1, queues=list(queues), stages=list(StageKind),
        capabilities=list(capabilities),
        hardware={"gpus": [H200] * gpus, **hardware},
    )  # fmt: skip


CPU, GPU = worker(Queue.cpu), worker(Queue.cuda, Queue.cpu, gpus=2)
MAC, GPU_QUEUE_WITHOUT_GPU = worker(Queue.mlx, Queue.cpu, capabilities=("mlx",)), worker(Queue.cuda)
MAC_WITHOUT_MLX = worker(Queue.mlx, Queue.cpu)
SFT = {"stage": "sft", "base": "org/base", "dataset": "rows"}
GRPO = {"stage": "grpo", "base": "org/base", "dataset": "rows", "rewards": [{"kind": "bleu"}]}
MERGE = {"stage": "merge", "model": "model_1"}
DEPLOY = {"stage": "deploy", "model": "org/base", "deployment": "one"}
EVALUATE = {"stage": "evaluate", "model": "org/base", "dataset": "rows"}
GENERATE = {"stage": "generate", "model": "org/base", "dataset": "rows"}
PREPARE = {"stage": "prepare", "dataset": "rows", "split": {"test": 1}}
PAIRS = PREPARE | {"base": "org/base", "recipe": {"kind": "on_policy_pairs"}}


@pytest.mark.parametrize(
    ("stage", "workers", "queue"),
    [
        (SFT, [CPU, GPU], "cuda"),
        (SFT, [CPU, MAC], "mlx"),
        (SFT, [MAC, GPU], "cuda"),
        (SFT, [CPU, MAC_WITHOUT_MLX], "cpu"),
        (SFT | {"packing": True}, [CPU, MAC], "cpu"),
        (SFT | {"backend": "torch"}, [CPU, MAC], "cpu"),
        (SFT | {"backend": "mlx"}, [CPU, MAC, GPU], "mlx"),
        (SFT | {"backend": "mlx"}, [CPU, GPU], "cpu"),
        (GRPO, [CPU, MAC], "cpu"),
        (SFT, [CPU, GPU_QUEUE_WITHOUT_GPU], "cpu"),
        (SFT | {"devices": 8, "batch_size": 8}, [CPU, GPU], "cuda"),
        ({"stage": "preflight", "target": SFT}, [CPU, GPU], "cuda"),
        (DEPLOY, [CPU, GPU], "cuda"),
        (DEPLOY | {"engine": "mlx"}, [GPU, MAC], "mlx"),
        (DEPLOY | {"engine": "mlx"}, [GPU], "cpu"),
        (EVALUATE, [CPU, GPU], "cuda"),
        (GENERATE, [GPU], "cuda"),
        (GENERATE, [MAC], "cpu"),
        (PREPARE, [CPU, GPU], "cpu"),
        (PAIRS, [CPU, GPU], "cuda"),
        (MERGE, [CPU, GPU], "cpu"),
        (PREPARE, [worker(Queue.cuda, gpus=1)], "cuda"),
        (PREPARE, [worker(Queue.mlx)], "mlx"),
    ],
)
def test_the_best_hardware_that_the_stage_can_use_is_chosen(
    stage: dict[str, object], workers: list[Worker], queue: str
) -> None:
    config = parse_stage(stage)
    needed = {queue: config.capability_on(queue) for queue in config.suitable_queues}
    choice = choose_queue(StageKind(config.stage), config.suitable_queues, workers, CPU_HOST, needed)
    assert choice.queue == queue


def test_the_reason_names_the_hardware_or_what_is_missing() -> None:
    suitable = (Queue.cuda, Queue.cpu)
    assert choose_queue(StageKind.sft, suitable, [GPU], CPU_HOST).reason == (
        "The best hardware of the live workers: 2 × NVIDIA H200 (here)."
    )
    unused = worker(Queue.cpu, unused="This host has 1 × NVIDIA H200, but torch cannot use it.")
    assert choose_queue(StageKind.sft, suitable, [unused], CPU_HOST).reason == (
        "No live worker that runs the stage sft has a GPU. This host has 1 × NVIDIA H200, but torch cannot "
        "use it."
    )


def test_before_the_first_worker_has_registered_this_host_decides() -> None:
    host = HostHardware((Queue.cuda, Queue.cpu))
    choice = choose_queue(StageKind.sft, (Queue.cuda, Queue.cpu), [], host)
    assert (choice.queue, choice.reason.startswith("No worker is alive yet")) == (Queue.cuda, True)
