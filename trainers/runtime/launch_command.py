"""What starts a program: its command, with one process or one for each device of the stage; its port."""

import logging
import os
import random
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from trainers.configs.base import Queue
from trainers.configs.stage_table import StageKind
from trainers.configs.training import Parallelism, TrainingConfig

SHUTDOWN_SECONDS = 3600
FOLDER = Path(__file__).parent.parent / "accelerate"
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class NodePlace:
    """The place of a host among those of a run: its rank, its address, and where the first one listens."""

    rank: int
    count: int
    address: str
    master_address: str
    master_port: int
    rendezvous_id: str

    @property
    def arguments(self) -> list[str]:
        """The arguments of torch's launcher. A host that fails ends all: the run resumes with all again."""
        return [
            *("--nnodes", str(self.count), "--node_rank", str(self.rank), "--max-restarts", "0"),
            *("--rdzv_backend", "static", "--rdzv_id", self.rendezvous_id, "--local_addr", self.address),
            *("--master_addr", self.master_address, "--master_port", str(self.master_port)),
        ]


def build_command(
    python: str, config: Any, config_path: Path, run_dir: Path, place: NodePlace | None = None
) -> list[str]:
    """Return the command of a stage's program, with torch's launcher where the stage has several devices.

    torch's launcher starts the requested number of processes on a CPU too; `accelerate launch` starts one
    there and exits with status 0. With a `place`, the host is one of several.
    """
    stage = StageKind(config.stage).stage
    uses_mlx = isinstance(config, TrainingConfig) and config.uses_mlx
    module = stage.mlx_program if uses_mlx else stage.program
    assert module is not None, f"the worker itself runs the stage {config.stage}"
    program = [module, "--config", str(config_path), "--run-dir", str(run_dir)]
    devices = config.devices if isinstance(config, TrainingConfig) else 1
    if devices == 1 and place is None:
        return [python, "-m", *program]
    hosts = ["--standalone"] if place is None else place.arguments
    launcher = ["torch.distributed.run", *hosts, "--nproc_per_node", str(devices)]
    # The launcher's default kills, 30 s after SIGTERM, a process that still saves a checkpoint. How long to
    # wait is the caller's decision.
    launcher += ["--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    return [python, "-m", *launcher, "-m", *program]


def restart_with_one_gpu(config: Any) -> None:
    """Start this program again with one visible GPU, if its stage needs one and several are visible.

    The Trainer would split each batch over all of them, which TRL refuses. Workers set the variable; a person
    who starts a program need not. CUDA reads it once, and libraries start CUDA when they are imported, so
    setting it now would have no effect.
    """
    # A training program has imported torch. A forked one has a worker, and not the command line of its own.
    torch, main = sys.modules.get("torch"), sys.modules["__main__"]
    if torch is None or main.__spec__ is None:
        return
    if sees_too_many_gpus(config, os.environ, torch.cuda.device_count()):
        logger.info("devices is 1, so GPU 0 is used. Set %s to use another.", VISIBLE_GPUS)
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(command[0], command, os.environ | {VISIBLE_GPUS: "0"})  # noqa: S606


def sees_too_many_gpus(config: Any, environment: Mapping[str, str], count: int) -> bool:
    """Return whether a program of one device, started by hand, sees several GPUs."""
    return (
        isinstance(config, TrainingConfig)
        and config.devices == 1
        and config.queue is not Queue.cpu
        and not config.uses_mlx
        and count > 1
        and not {VISIBLE_GPUS, "WORLD_SIZE"} & environment.keys()
    )


def parallel_arguments(config: TrainingConfig) -> dict[str, Any]:
    """Return the Trainer's arguments for several processes, from a file in `trainers/accelerate`."""
    if config.processes == 1:
        return {}
    chosen = Parallelism.ddp if config.parallelism is Parallelism.auto else config.parallelism
    arguments: dict[str, Any] = yaml.safe_load((FOLDER / f"{chosen}.yaml").read_text(encoding="utf-8"))
    return arguments


class NoFreePort(Exception):
    """No port of the range is free."""


class HeldPort:
    """A port for a program that is about to start, which no other program gets meanwhile.

    A socket is bound to it that does not listen. On Linux a server can bind the port all the same, because
    servers set SO_REUSEADDR; a program that asks for any free port, or for one of a range as here, gets
    another. Elsewhere the port is only known to be free at first.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            # Without the option, so that the port of another holder is refused.
            self._socket.bind((host, port))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            self._socket.close()
            raise
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self.release()

    def release(self) -> None:
        """Stop holding the port: its program listens, or has ended."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def hold_port(host: str, ports: Iterable[int]) -> HeldPort:
    """Hold a port of the range that is free at the host; raises NoFreePort."""
    candidates = list(ports)
    # Programs of other hosts reach the port: a fixed order would make each use of it the likeliest to clash.
    random.shuffle(candidates)
    for port in candidates:
        try:
            return HeldPort(host, port)
        except OSError:
            continue
    raise NoFreePort(f"none of the {len(candidates)} ports is free at {host}")
