"""What the digits of a step depend on beside config and data, noted in each checkpoint."""

from pathlib import Path
from typing import Any

import torch
import transformers
import trl

from trainers.configs.base import Queue
from trainers.configs.resume_guarantee import ResumeGuarantee, get_resume_guarantee, make_guarantee
from trainers.configs.training import TrainingConfig
from trainers.modeling.load import pick_attention, pick_device
from trainers.runtime import run_dir as files

SURROUNDINGS = "surroundings.json"


def save_environment(config: TrainingConfig, checkpoint: Path) -> None:
    """Write them into a checkpoint that is about to be published."""
    files.write_json(checkpoint / SURROUNDINGS, _surroundings(config))


def expected_resume_guarantee(config: TrainingConfig) -> ResumeGuarantee:
    """How the run would go on after a stop, on this host."""
    queue = Queue.cuda if pick_device(config.queue).type == "cuda" else Queue.cpu
    found = get_resume_guarantee(config.stage, queue, config.model_dump(mode="json"))
    assert found is not None, "training stages have checkpoints"
    return found


def actual_resume_guarantee(config: TrainingConfig, checkpoint: Path) -> ResumeGuarantee:
    """How the run goes on from this checkpoint, which another kind of host may have written."""
    then, now = files.read_json(checkpoint / SURROUNDINGS) or {}, _surroundings(config)
    changed = [
        f"{name} was {then.get(name, 'not noted')} when the checkpoint was saved and is {value} now: "
        "sums are rounded otherwise, and random draws may fall elsewhere."
        for name, value in now.items()
        if then.get(name) != value
    ]
    return make_guarantee(expected_resume_guarantee(config).reasons + changed)


def _surroundings(config: TrainingConfig) -> dict[str, Any]:
    device = pick_device(config.queue)
    is_cuda = device.type == "cuda"
    return {
        "micro_batch_size": config.micro_batch_size,
        "devices": config.devices,
        "parallelism": config.parallelism.value,
        "attention": pick_attention(config.attention, device),
        "device": torch.cuda.get_device_name(device) if is_cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
