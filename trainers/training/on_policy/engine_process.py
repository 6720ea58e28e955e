"""The engine that generates the completions of a run: a child of the training program.

The program starts it, and not a worker: its longest sequence follows from the rows, which the program alone
has tokenized, and it needs the devices that the program holds. `python -m serving` turns the options into the
engine's own, and becomes the engine.
"""

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from trainers.configs.engines import EngineKind
from trainers.runtime.errors import EngineFailed
from trainers.runtime.launch_command import HeldPort
from trainers.runtime.process_tree import mark, new_marker
from trainers.runtime.ranks import current_rank

HOST = "127.0.0.1"
BASE_NAME = "base"
ENGINE_LOG = "engine.log"
HEALTH_SECONDS = 2.0
POLL_SECONDS = 0.2
# Torch's launcher sets these for its ranks; vLLM would take the engine for one of them.
LAUNCHER_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_", "LOCAL_", "MASTER_")
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE")
# With growing segments, which this program has (see `training_environment` of the workers), vLLM's allocator
# for sleep mode and its transfers of the KV cache fail.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class ChildEngineOptions:
    """What an engine is started with.

    Attributes:
        kind: The engine.
        program: Command that starts it; empty for the one on PATH.
        model: Folder or hub id of the base.
        max_model_len: Tokens of the longest prompt with the longest completion.
        dtype: Number format of the base in training.
        adapter_rank: Rank of the adapter.
        memory_share: Share of the GPU's memory, for vLLM.
        device: Type of the device that the run has.
        timeout_seconds: Seconds within which it must be ready.
    """

    kind: EngineKind
    program: Sequence[str]
    model: str
    max_model_len: int
    dtype: str
    adapter_rank: int
    memory_share: float
    device: str
    timeout_seconds: float

    def command(self, port: int) -> list[str]:
        """Return the command that serves the base and one adapter on a port."""
        return [
            *(sys.executable, "-m", "serving", "--engine", self.kind),
            *(("--program", shlex.join(self.program)) if self.program else ()),
            *("--model", self.model, "--served-name", BASE_NAME, "--host", HOST, "--port", str(port)),
            *("--max-model-len", str(self.max_model_len), "--dtype", self.dtype),
            *("--max-adapters", "1", "--max-adapter-rank", str(self.adapter_rank)),
            *(self._vllm_flags() if self.kind is EngineKind.vllm else ()),
            # With the temperature, as the trainer computes them: importance ratios compare both.
            *("--logprobs-mode", "processed_logprobs"),
        ]

    def _vllm_flags(self) -> list[str]:
        flags = ["--memory-share", str(self.memory_share)]
        # vLLM 0.32 fails on a CPU if it reads the prompt of a request with a seed in parts: it cannot rewind
        # the generator of the request there.
        return [*flags, "--no-enable-chunked-prefill"] if self.device == "cpu" else flags


@dataclass(frozen=True)
class EngineChild:
    """An engine that is running."""

    kind: EngineKind
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def describe_end(self) -> str | None:
        """Return how the engine has ended; None while it is running."""
        status = self.process.poll()
        return None if status is None else f"The engine {self.kind} exited with status {status}."


@contextmanager
def run_engine(options: ChildEngineOptions, run_dir: Path) -> Iterator[EngineChild]:
    """Start an engine, yield it when it accepts requests, and stop it at the end.

    Raises:
        EngineFailed: The engine did not start.
    """
    log = run_dir / (f"engine-{current_rank()}.log" if current_rank() else ENGINE_LOG)
    port = HeldPort(HOST)
    with log.open("ab") as output:
        command = options.command(port.number)
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.training.on_policy.engine_watch", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(options.kind) | mark(new_marker()),
            # A request to stop the run is not for the engine: the step that is in progress needs it.
            start_new_session=True,
        )
    engine = EngineChild(options.kind, f"http://{HOST}:{port.number}", process, log)
    try:
        _wait_until_ready(engine, options.timeout_seconds)
        yield engine
    finally:
        port.release()
        # Closes the pipe.
        process.communicate()


def _wait_until_ready(engine: EngineChild, timeout_seconds: float) -> None:
    started_at = time.monotonic()
    hint = f"Its log is {engine.log.name} in the run directory."
    with httpx2.Client(trust_env=False, timeout=HEALTH_SECONDS) as client:
        while not _is_healthy(client, engine.url):
            seconds = time.monotonic() - started_at
            if (end := engine.describe_end()) is not None:
                raise EngineFailed(f"{end} It was not ready yet.", hint)
            if seconds > timeout_seconds:
                message = f"The engine {engine.kind} was not ready after {seconds:.0f} s."
                raise EngineFailed(message, f"{hint} If it needs longer, raise engine_timeout_seconds.")
            time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - started_at
    logger.info("The engine %s generates the completions; it was ready after %.0f s.", engine.kind, seconds)


def _is_healthy(client: httpx2.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health").status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False


def _environment(kind: EngineKind) -> dict[str, str]:
    """Return the environment of the engine; among several GPUs it gets the one of this rank."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(LAUNCHER_PREFIXES) and name not in LAUNCHER_VARIABLES
    }
    if (position := os.environ.get("LOCAL_RANK")) is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        own["CUDA_VISIBLE_DEVICES"] = visible[int(position)] if visible != [""] else position
    return own if kind is not EngineKind.vllm else _without_growing_segments(own)


def _without_growing_segments(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment without `expandable_segments`; other options of the allocator are kept."""
    changed = dict(environment)
    for name in ALLOCATOR_VARIABLES:
        options = [
            one for one in changed.pop(name, "").split(",") if one and "expandable_segments" not in one
        ]
        changed |= {name: ",".join(options)} if options else {}
    return changed
