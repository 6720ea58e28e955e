"""The command that starts a stage's program: one process, or one for each device of the stage."""

from pathlib import Path
from typing import Any

import yaml

from trainers.configs.stage_table import StageKind
from trainers.configs.training import Parallelism, TrainingConfig

SHUTDOWN_SECONDS = 3600
FOLDER = Path(__file__).parent.parent / "accelerate"


def build_command(python: str, config: Any, config_path: Path, run_dir: Path) -> list[str]:
    """Return the command of a stage's program, with torch's launcher where the stage has several devices.

    torch's launcher starts the requested number of processes on a CPU too; `accelerate launch` starts one
    there and exits with status 0.
    """
    stage = StageKind(config.stage).stage
    uses_mlx = isinstance(config, TrainingConfig) and config.uses_mlx
    module = stage.mlx_program if uses_mlx else stage.program
    assert module is not None, f"the worker itself runs the stage {config.stage}"
    program = [module, "--config", str(config_path), "--run-dir", str(run_dir)]
    devices = config.devices if isinstance(config, TrainingConfig) else 1
    if devices == 1:
        return [python, "-m", *program]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)]
    # The launcher's default kills, 30 s after SIGTERM, a process that still saves a checkpoint. How long to
    # wait is the caller's decision.
    launcher += ["--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    return [python, "-m", *launcher, "-m", *program]


def parallel_arguments(config: TrainingConfig) -> dict[str, Any]:
    """Return the Trainer's arguments for several processes, from a file in `trainers/accelerate`."""
    if config.devices == 1:
        return {}
    chosen = Parallelism.ddp if config.parallelism is Parallelism.auto else config.parallelism
    arguments: dict[str, Any] = yaml.safe_load((FOLDER / f"{chosen}.yaml").read_text(encoding="utf-8"))
    return arguments
