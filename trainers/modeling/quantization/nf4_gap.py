"""How far an adapter on its original base is from the model that was trained on weights in nf4."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from safetensors import safe_open
from torch.nn import functional
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from trainers.configs.references import get_base_model
from trainers.configs.training import Precision, TrainingConfig
from trainers.modeling.load import pick_device, pick_precision
from trainers.modeling.model_source import open_base
from trainers.modeling.quantization.probes import COMPLETION_TOKENS, render_probes
from trainers.modeling.quantization.record import (
    QuantizedBase,
    make_probes,
    measure_gap,
    write_quantized_base,
)
from trainers.modeling.safetensors_file import read_header

FLOATS = {"F16", "BF16", "F32", "F64"}
BASE_LAYER = ".base_layer"


class GapUnknown(Exception):
    """The files of the base do not contain the weights that were quantized, under the names of its layers."""


class Nf4GapRecorder:
    """Measures the gap of one model whose base is in nf4, as often as its adapter is written."""

    def __init__(self, model: PeftModel, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find the original weights of all 4-bit layers; raises GapUnknown."""
        self._model, self._tokenizer = model, tokenizer
        self._precision: Precision = pick_precision(config.precision, pick_device(config.queue))
        self._layers = dict(_find_quantized_layers(model))
        self._originals = _find_originals(get_base_model(config.base), self._layers)

    def record(self, folder: Path) -> None:
        """Write the record of the model's present adapter into the folder that contains it."""
        model = self._model
        with _evaluated(model):
            rows = self._complete(render_probes(self._tokenizer))
            expected = self._score(rows)
        with _evaluated(model), _original_weights(model, self._layers, self._originals):
            found = self._score(rows)
        first = next(iter(self._layers.values())).weight.quant_state
        probes = make_probes(rows, expected)
        record = QuantizedBase(
            format=first.quant_type,
            bits=4,
            group_size=first.blocksize,
            precision=self._precision,
            sha256=self._sha256,
            gap=measure_gap(probes, found),
            probes=probes,
        )
        write_quantized_base(record, folder)

    def record_published(self, folder: Path) -> None:
        """Write the record of a published adapter, which may be that of an earlier step."""
        weights = load_peft_weights(str(folder), device=str(next(self._model.parameters()).device))
        set_peft_model_state_dict(self._model, weights)
        self.record(folder)

    @cached_property
    def _sha256(self) -> str:
        """The hash of the frozen base, whose weights no step changes."""
        digest = hashlib.sha256()
        tensors: dict[str, torch.Tensor] = {}
        for name, layer in self._layers.items():
            state = layer.weight.quant_state.as_dict(packed=True)
            tensors |= {f"{name}.{key}": value for key, value in state.items()}
        for name, parameter in self._model.get_base_model().named_parameters():
            if not parameter.requires_grad and "lora_" not in name:
                tensors[name.replace(BASE_LAYER, "")] = parameter
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            content = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().tobytes())
        return digest.hexdigest()

    def _complete(self, rows: list[list[int]]) -> list[list[int]]:
        """Append the likeliest tokens; without a cache, which not every architecture has in one form."""
        for _ in range(COMPLETION_TOKENS):
            logits_btv = self._logits(rows)
            for number, row in enumerate(rows):
                row.append(int(logits_btv[number, len(row) - 1].argmax()))
        return rows

    def _score(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token but the first of each row."""
        scores = []
        for row, logits_tv in zip(rows, self._logits(rows), strict=True):
            targets_t = torch.tensor(row[1:], device=logits_tv.device)
            losses_t = functional.cross_entropy(logits_tv[: len(row) - 1], targets_t, reduction="none")
            # A rounding error above 0 is no probability.
            scores.append((-losses_t).clamp(max=0).tolist())
        return scores

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits (b, t, v) of rows that are padded on the right, where attention does not see."""
        longest, device = max(map(len, rows)), next(self._model.parameters()).device
        ids_bt = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        mask_bt = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        output = self._model(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False)
        logits_btv: torch.Tensor = output.logits.float()
        return logits_btv


def _find_quantized_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """Yield the layers of bitsandbytes by the names that they have without an adapter."""
    for name, layer in model.get_base_model().named_modules():
        # PEFT's layer around one has the same name, and the base layer as a part.
        if type(layer).__name__ == "Linear4bit" and not hasattr(layer, "base_layer"):
            yield name.removesuffix(BASE_LAYER), layer


def _find_originals(base: str, layers: dict[str, Any]) -> dict[str, Path]:
    """Return the file with the original weight of each layer; raises GapUnknown."""
    headers = {path: read_header(path)[0] for path in Path(open_base(base)).glob("*.safetensors")}
    found = {
        name.removesuffix(".weight"): path
        for path, header in headers.items()
        for name, entry in header.items()
        if name.endswith(".weight") and entry["dtype"] in FLOATS
    }
    missing = [name for name in layers if name not in found]
    if missing or not layers:
        raise GapUnknown(f"the files of {base} do not contain {missing[0] if missing else 'a 4-bit layer'}")
    return {name: found[name] for name in layers}


class _OriginalLinear(torch.nn.Linear):  # type: ignore[misc]
    """A linear layer whose weight is read before it is used, and freed after."""

    def __init__(self, name: str, path: Path, quantized: Any) -> None:
        super().__init__(quantized.in_features, quantized.out_features, bias=False, device="meta")
        self.requires_grad_(False)
        self.bias = quantized.bias
        self._name, self._path = f"{name}.weight", path
        self._device, self._dtype = quantized.weight.device, quantized.compute_dtype
        # The class that was quantized: transformers transposes the weights of a Conv1D for it.
        self._is_transposed = issubclass(getattr(quantized, "source_cls", torch.nn.Linear), Conv1D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in the format of the 4-bit layer."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return functional.linear(x.to(self.weight.dtype), self.weight, bias).to(x.dtype)

    def read(self, *_: Any) -> None:
        """Read the weight from its file; a hook before a forward pass."""
        with safe_open(self._path, framework="pt") as file:
            weight = file.get_tensor(self._name).to(self._device, self._dtype)
        weight = weight.T.contiguous() if self._is_transposed else weight
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def free(self, *_: Any) -> None:
        """Free the weight; a hook after a forward pass."""
        self.weight = torch.nn.Parameter(self.weight.to("meta"), requires_grad=False)


@contextmanager
def _original_weights(model: PeftModel, layers: dict[str, Any], files: dict[str, Path]) -> Iterator[None]:
    """Inside the context, the base has its original weights, of which one is in memory at a time."""
    base = model.get_base_model()
    hooks, owners = [], []
    try:
        for name, quantized in layers.items():
            parent_name, _, attribute = name.rpartition(".")
            parent = base.get_submodule(parent_name)
            outer = getattr(parent, attribute)
            original = _OriginalLinear(name, files[name], quantized)
            if outer is not quantized:
                # Not only the forward pass of the layer reads the weight: DoRA's update takes its norm.
                parent, attribute = outer, "base_layer"
            user = original if outer is quantized else outer
            setattr(parent, attribute, original)
            owners.append((parent, attribute, quantized))
            hooks += [
                user.register_forward_pre_hook(original.read),
                user.register_forward_hook(original.free),
            ]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parent, attribute, quantized in owners:
            setattr(parent, attribute, quantized)


@contextmanager
def _evaluated(model: PeftModel) -> Iterator[None]:
    was_training = model.training
    # PEFT keeps norms of DoRA in eval mode, also of other weights, until the model is trained again.
    model.train()
    model.eval()
    try:
        yield
    finally:
        model.train()
        model.train(was_training)
