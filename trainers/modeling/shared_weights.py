"""The weights of a base that the ranks of a host hold once, until each has its shard on its device.

transformers maps the files of a base into memory, so a weight that needs no conversion is one copy in the
page cache. One that is stored in another dtype, such as bf16 for full tuning in fp32, or in parts, would be a
copy of each rank. The first rank of the host converts those, and all ranks map the files that it writes.
"""

import ctypes
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from trainers.modeling.safetensors_file import read_header
from trainers.runtime.ranks import current_rank, is_first_of_host, launch_name, node_rank, ranks_of_host

# What the first rank holds twice while it writes.
MAX_FILE_BYTES: Final = 2 << 30
WRITTEN: Final = "written"
TIES: Final = "ties.json"
# By their names in safetensors files. A weight of another dtype is converted.
DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
POLL_SECONDS: Final = 0.05

_calls = count()


def is_stored(folder: Path, model: nn.Module) -> bool:
    """Return whether the files of a base contain each weight as the model holds it, so that it is mapped."""
    stored: dict[str, tuple[object, object]] = {}
    for path in folder.glob("*.safetensors"):
        header, _ = read_header(path)
        stored |= {name: (DTYPES.get(entry["dtype"]), entry["shape"]) for name, entry in header.items()}
    return all(
        stored.get(name) == (weight.dtype, list(weight.shape)) for name, weight in model.named_parameters()
    )


def share_weights(
    load: Callable[[], PreTrainedModel], load_empty: Callable[[], PreTrainedModel], folder: Path
) -> PreTrainedModel:
    """Return the model with weights that all ranks of this host map from the same files.

    The first rank loads the model, the others an empty one, on torch's `meta` device. All ranks of the host
    must call this equally often. The files are in `folder` until every rank has mapped them.
    """
    prefix = f"weights-{node_rank()}-"
    shared = folder / f"{prefix}{launch_name()}-{next(_calls)}"
    if is_first_of_host():
        # A start that was killed has left a copy of all weights.
        _remove(folder.glob(f"{prefix}*"))
        model = load()
        shared.mkdir(parents=True)
        try:
            _write(model, shared)
            _wait_until(lambda: len(list(shared.glob("mapped-*"))) == ranks_of_host() - 1)
        finally:
            # The kernel keeps what is mapped. After a failure on a full disk, this makes room.
            _remove([shared])
        return model
    model = load_empty()
    _wait_until((shared / WRITTEN).is_file)
    _tie(model, json.loads((shared / TIES).read_text(encoding="utf-8")))
    for path in sorted(shared.glob("*.safetensors")):
        _map(path, model)
    (shared / f"mapped-{current_rank()}").touch()
    empty = [name for name, tensor in _tensors(model).items() if tensor.is_meta]
    assert not empty, f"the first rank has no {', '.join(empty)}"
    return model


def _remove(folders: Iterable[Path]) -> None:
    for folder in list(folders):
        # NFS keeps a mapped file under another name, and with it the folder, until it is unmapped.
        shutil.rmtree(folder, ignore_errors=True)


def _write(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights, and map those of each file at once, which frees the memory that they had."""
    for number, names in enumerate(_split(_tensors(model))):
        path = folder / f"{number:05d}.safetensors"
        tensors = _tensors(model)
        save_file({name: tensors[name].detach().contiguous() for name in names}, path)
        del tensors
        _map(path, model)
    (folder / TIES).write_text(json.dumps(_list_ties(model)), encoding="utf-8")
    (folder / WRITTEN).touch()
    if sys.platform == "linux":
        # Else glibc keeps most of the memory that is free now.
        ctypes.CDLL(None).malloc_trim(0)


def _split(tensors: dict[str, torch.Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    n_bytes = 0
    for name, tensor in tensors.items():
        if names and n_bytes + tensor.nbytes > MAX_FILE_BYTES:
            yield names
            names, n_bytes = [], 0
        names.append(name)
        n_bytes += tensor.nbytes
    yield names


def _map(path: Path, model: PreTrainedModel) -> None:
    """Replace the weights and buffers of a model by those of a file, which the kernel reads when needed."""
    tensors = _tensors(model)
    with safe_open(path, framework="pt") as file:
        mapped = {id(tensors[name]): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for old in model.parameters():
        if id(old) in mapped:
            mapped[id(old)] = nn.Parameter(mapped[id(old)], requires_grad=old.requires_grad)
    for old in model.buffers():
        if id(old) in mapped:
            # Sharding leaves buffers as they are, and one of them would keep the whole file mapped.
            mapped[id(old)] = mapped[id(old)].clone()
    # Tied weights stay one object.
    for module in model.modules():
        for name, old in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(old) in mapped:
                setattr(module, name, mapped[id(old)])


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights and buffers, of tied ones the first."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _list_ties(model: PreTrainedModel) -> dict[str, str]:
    """Return the further names of each tied weight, with its first."""
    firsts = {id(tensor): name for name, tensor in model.named_parameters()}
    names = {name: firsts[id(tensor)] for name, tensor in model.named_parameters(remove_duplicate=False)}
    return {name: first for name, first in names.items() if name != first}


def _tie(model: PreTrainedModel, ties: Mapping[str, str]) -> None:
    """Tie the weights of an empty model: transformers does not if the files contain both of them."""
    for name, first in ties.items():
        module, _, weight = name.rpartition(".")
        setattr(model.get_submodule(module), weight, model.get_parameter(first))


def _wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for another rank; if it fails, `RankWatch` ends this one."""
    while not is_true():
        time.sleep(POLL_SECONDS)
