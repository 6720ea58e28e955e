"""Checkpoints of weights that FSDP2 shards: each process writes its own shards while training continues.

A checkpoint has the weights once, as a model: the shards are joined into safetensors files. The optimizer's
state stays in shards, in the format of torch's distributed checkpoints (DCP). Its metadata is a pickle, which
is read only from a checkpoint whose files match the manifest that the run has written.
"""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

OPTIMIZER = "optimizer_shards"
# Where torch writes the shards of the weights until they are joined.
SHARDS = "sharded"
MAX_FILE_BYTES = 5 << 30
# Joining the shards is bound by the disk, so more threads gain nothing.
JOINING_THREADS = 4


class ShardWriter:
    """Writes one checkpoint at a time, in a thread of each process.

    The processes agree in a group of their own, since training uses the others meanwhile.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._thread: threading.Thread | None = None
        self._publish: Callable[[], None] | None = None
        self._is_prepared = threading.Event()
        self._error: BaseException | None = None

    def start(self, folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
        """Copy the shards of this process to memory, and start to write them to the folder of a checkpoint.

        Raises what stopped the checkpoint before.
        """
        self.wait()
        folder.mkdir(parents=True, exist_ok=True)
        state = {"weights": _read_weights(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        stager = DefaultStager(StagingOptions(False, False, False, False))
        try:
            staged = stager.stage(state)
        finally:
            stager.close()
        self._is_prepared.clear()
        self._thread = threading.Thread(target=self._run, args=(folder, staged), name="shards", daemon=True)
        self._thread.start()

    def publish_when_written(self, publish: Callable[[], None]) -> None:
        """Call a function in the thread once the shards are written; all other files must exist by now."""
        self._publish = publish
        self._is_prepared.set()

    def wait(self) -> None:
        """Wait until the checkpoint is published, and raise what stopped it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def check(self) -> None:
        """Raise what has stopped the checkpoint, without waiting."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def _run(self, folder: Path, staged: dict[str, Any]) -> None:
        try:
            with _errors_of_processes():
                _write(folder, staged, self._group)
            self._is_prepared.wait()
            assert self._publish is not None
            self._publish()
        except BaseException as error:
            self._error = error


def has_shards(checkpoint: Path) -> bool:
    """Return whether the optimizer's state of a checkpoint is in shards."""
    return (checkpoint / OPTIMIZER).is_dir()


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a model, of which this process may hold shards."""
    weights = _read_weights(model)
    _load(weights, dcp.HuggingFaceStorageReader(str(checkpoint)))
    set_model_state_dict(model, weights, options=StateDictOptions(strict=False))


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Load the optimizer's state of a checkpoint, which any number of processes may have written."""
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    _load(state, dcp.FileSystemReader(checkpoint / OPTIMIZER))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def _load(state: dict[str, Any], reader: Any) -> None:
    with _errors_of_processes():
        dcp.load(state, storage_reader=reader, no_dist=not distributed.is_initialized())


@contextmanager
def _errors_of_processes() -> Iterator[None]:
    """Raise the error of the first process that failed, such as a full disk.

    Torch wraps it in an error that is no Exception, which nothing would report.
    """
    try:
        yield
    except dcp.CheckpointException as failed:
        error, _ = failed.failures[min(failed.failures)]
        raise error from failed


def _read_weights(model: nn.Module) -> dict[str, Any]:
    """Return the weights that this process holds, without tied duplicates."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return {name: weight for name, weight in get_model_state_dict(model).items() if name not in tied}


def _write(folder: Path, staged: dict[str, Any], group: Any) -> None:
    weights = staged["weights"]
    writer = dcp.HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=_assign_files(weights),
        save_distributed=True,
        enable_consolidation=True,
        thread_count_consolidation=JOINING_THREADS,
    )
    dcp.save(weights, storage_writer=writer, process_group=group)
    state = {"optimizer": staged["optimizer"]}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / OPTIMIZER), process_group=group)
    if distributed.get_rank() == 0:
        shutil.rmtree(folder / SHARDS)


def _assign_files(weights: dict[str, torch.Tensor]) -> dict[str, int]:
    """Return the number of the file, from 1, for each weight."""
    files: dict[str, int] = {}
    n_bytes = 0
    for name, weight in weights.items():
        files[name] = 1 + n_bytes // MAX_FILE_BYTES
        n_bytes += weight.numel() * weight.element_size()
    return files
