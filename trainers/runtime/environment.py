"""The environment that determines the numerics of a step: hardware, threads, library versions.

Each checkpoint contains it, so that a resumed run can say whether it repeats the interrupted one exactly.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
import trl

from trainers.configs.base import Queue
from trainers.configs.references import get_base_model
from trainers.configs.resume_guarantee import ResumeGuarantee, get_resume_guarantee, make_guarantee
from trainers.configs.training import TrainingConfig
from trainers.modeling.attention.choice import pick_attention
from trainers.modeling.load import load_config, pick_device
from trainers.runtime import run_dir as files

ENVIRONMENT = "environment.json"


def save_environment(config: TrainingConfig, checkpoint: Path) -> None:
    """Write the environment into a checkpoint that is about to be published."""
    files.write_json(checkpoint / ENVIRONMENT, _current_environment(config))


def expected_resume_guarantee(config: TrainingConfig) -> ResumeGuarantee:
    """Return how exactly the run would resume on this host."""
    queue = Queue.cuda if pick_device(config.queue).type == "cuda" else Queue.cpu
    guarantee = get_resume_guarantee(config, queue)
    assert guarantee is not None, "training stages have checkpoints"
    return guarantee


def actual_resume_guarantee(config: TrainingConfig, checkpoint: Path) -> ResumeGuarantee:
    """Return how exactly the run resumes from this checkpoint, which another host may have written."""
    return compare_environments(
        expected_resume_guarantee(config).reasons, checkpoint, _current_environment(config)
    )


def compare_environments(reasons: list[str], checkpoint: Path, now: dict[str, Any]) -> ResumeGuarantee:
    """Return the guarantee with these reasons, and one for each value that was another in the checkpoint."""
    then = files.read_json(checkpoint / ENVIRONMENT) or {}
    changes = [
        f"{name} was {then.get(name, 'unknown')} when the checkpoint was saved and is {value} now, which "
        "changes how sums are rounded and may change random draws."
        for name, value in now.items()
        if then.get(name) != value
    ]
    return make_guarantee(reasons + changes)


def _current_environment(config: TrainingConfig) -> dict[str, Any]:
    device = pick_device(config.queue)
    is_cuda = device.type == "cuda"
    return {
        "micro_batch_size": config.micro_batch_size,
        "devices": config.devices,
        **({"nodes": config.nodes} if config.nodes > 1 else {}),
        "parallelism": config.parallelism.value,
        "attention": pick_attention(
            config.attention, device, load_config(get_base_model(config.base)), config.precision
        ),
        "device": torch.cuda.get_device_name(device) if is_cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
