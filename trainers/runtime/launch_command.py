"""How a stage's program is started: as one process, or as one for each device that it asks for."""

from pathlib import Path
from typing import Any

import yaml

from trainers.configs.stages.generate import GenerateConfig
from trainers.configs.training import Parallelism, TrainingConfig

SHUTDOWN_SECONDS = 3600
FOLDER = Path(__file__).parent.parent / "accelerate"


def command(python: str, config: Any, config_path: Path, run_dir: Path) -> list[str]:
    """The command of a stage's program; several processes find each other through torch's own launcher.

    Unlike `accelerate launch`, torch's launcher starts as many processes as asked for without a GPU too.
    """
    package = "serving" if isinstance(config, GenerateConfig) else "trainers"
    program = [f"{package}.{config.stage}", "--config", str(config_path), "--run-dir", str(run_dir)]
    devices = config.devices if isinstance(config, TrainingConfig) else 1
    if devices == 1:
        return [python, "-m", *program]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)]
    # By default it kills after 30 s what is still saving a checkpoint; who started it knows how long to wait.
    launcher += ["--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    return [python, "-m", *launcher, "-m", *program]


def parallel_arguments(config: TrainingConfig) -> dict[str, Any]:
    """The Trainer's arguments by which several processes share a run: a file of `trainers/accelerate`."""
    if config.devices == 1:
        return {}
    chosen = Parallelism.ddp if config.parallelism is Parallelism.auto else config.parallelism
    arguments: dict[str, Any] = yaml.safe_load((FOLDER / f"{chosen}.yaml").read_text(encoding="utf-8"))
    return arguments
