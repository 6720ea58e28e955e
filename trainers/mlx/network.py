"""The model to train as mlx-lm's network, its adapter, and its number formats."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_config as load_file_config
from mlx_lm.utils import load_model
from peft import LoraConfig
from transformers.pytorch_utils import Conv1D

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.training import LoraTuning, Precision, TrainingConfig
from trainers.mlx.activations import approximate_gelu
from trainers.mlx.adapters import add_adapter, linear_modules, load_adapter, quantized_layers
from trainers.mlx.dropout import replace_dropout
from trainers.mlx.model_config import complete_config, exact_context_length
from trainers.modeling.architecture import build_empty_model
from trainers.modeling.load import ModelUnsupported, check_adapter_folder, load_config
from trainers.modeling.model_source import open_base
from trainers.modeling.safetensors_file import read_header
from trainers.runtime.errors import join_names
from trainers.runtime.events import EventWriter
from trainers.training.policy import warn_of_kept_settings

GROUP_SIZE = 64
BITS = 4
# Of config.json, where mlx-lm has quantized the weights.
QUANTIZATION_KEYS = ("quantization", "quantization_config")
# Names that an error lists.
MAX_LISTED = 3
TORCH_HINT = "Train it with the backend torch, on a GPU host."


def uses_gpu() -> bool:
    """Return whether MLX computes on an Apple GPU."""
    return bool(mx.default_device() == mx.Device(mx.gpu))


def pick_mlx_precision(config: TrainingConfig) -> Precision:
    """Resolve `auto`: bf16 on a GPU, where only an adapter is trained; else fp32.

    MLX has no automatic mixed precision, and bf16 would round the small updates of trained weights away.
    """
    if config.precision is not Precision.auto:
        return config.precision
    is_mixed = isinstance(config.tuning, LoraTuning) and uses_gpu()
    return Precision.bf16 if is_mixed else Precision.fp32


def load_trained_network(
    config: TrainingConfig, events: EventWriter, longest_tokens: int
) -> tuple[nn.Module, LoraConfig | None]:
    """Load the model to train and its adapter; with full tuning, an adapter of the base is merged into it.

    Raises the errors of `open_base` and `load_adapter`, and ModelUnsupported, also for rows of
    `longest_tokens` if those are too long for mlx-lm. No weight has been read then.
    """
    base, tuning = get_base_model(config.base), config.tuning
    mx.random.seed(config.seed)
    network = load_network(base, pick_mlx_precision(config))
    _check_base_format(network, config)
    _check_row_length(network, base, longest_tokens)
    if not isinstance(tuning, LoraTuning):
        if isinstance(config.base, AdaptedModel):
            load_adapter(network, check_adapter_folder(Path(config.base.adapter)))
            _fuse_adapter(network)
        check_weight_names(network, base)
        network.unfreeze()
        mx.eval(network.parameters())
        return network, None
    if tuning.quantization is not None:
        quantize(network)
    if tuning.publish_dequantized_base:
        _check_file_names(network, base)
    if isinstance(config.base, AdaptedModel):
        adapter = load_adapter(network, check_adapter_folder(Path(config.base.adapter)))
        warn_of_kept_settings(tuning, adapter, events)
    else:
        layers = find_targets(network, base, tuning.target_modules)
        adapter = LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.alpha,
            lora_dropout=tuning.dropout,
            use_dora=tuning.dora,
            use_rslora=tuning.rslora,
            target_modules=tuning.target_modules,
            task_type="CAUSAL_LM",
        )
        add_adapter(network, adapter, layers)
    # An adapter that is trained further may have dropout, which a comparison with a reference excludes.
    replace_dropout(network, is_disabled=config.disables_dropout)
    # The factors are trained in fp32, whatever the format of the base.
    network.update(_cast(network.trainable_parameters(), mx.float32))
    mx.eval(network.parameters())
    return network, adapter


def load_network(base: str, precision: Precision) -> nn.Module:
    """Load a base, with the config values as transformers reads them.

    Raises the errors of `open_base`, and ModelUnsupported.

    Its weights are computed in `precision`, whatever the format of the files. They are read when they are
    used: a base that is quantized before needs no memory for its original weights.
    """
    folder = Path(open_base(base))
    values = complete_config(base, load_file_config(folder), load_config(base))
    try:
        network, _ = load_model(folder, lazy=True, model_config=values)
    except (TypeError, ValueError) as error:
        # A value that its class needs and transformers calls otherwise, or weights of other names.
        raise ModelUnsupported(f"mlx-lm cannot load {base}: {error}", TORCH_HINT) from error
    approximate_gelu(network, load_config(base).model_type)
    network.set_dtype(mx.bfloat16 if precision is Precision.bf16 else mx.float32)
    return network


def _check_base_format(network: nn.Module, config: TrainingConfig) -> None:
    """Raise ModelUnsupported for a base that mlx-lm has quantized, unless its dense form is published."""
    if quantized_layers(network) and not config.publishes_base:
        raise ModelUnsupported(
            f"{get_base_model(config.base)} is quantized in the format of mlx-lm, which no other engine "
            "loads, so an adapter for it could not be served elsewhere.",
            "Set tuning.quantization to 4bit and tuning.publish_dequantized_base, or name the original model "
            "as `base` with tuning.quantization 4bit.",
        )


def _check_row_length(network: nn.Module, base: str, longest_tokens: int) -> None:
    """Raise ModelUnsupported for rows on which mlx-lm's attention is not that of transformers."""
    # mlx-lm ignores the window of a model to which it gives no cache with one.
    has_window = not all(isinstance(cache, KVCache) for cache in make_prompt_cache(network))
    exact = exact_context_length(load_config(base), has_window)
    if exact is not None and longest_tokens > exact:
        raise ModelUnsupported(
            f"The longest row has {longest_tokens:,} tokens, and mlx-lm computes {base} as transformers does "
            f"for at most {exact:,}.",
            f"Set max_length to {exact}. {TORCH_HINT}",
        )


def _check_file_names(network: nn.Module, base: str) -> None:
    """Raise ModelUnsupported unless the base's files name its quantized layers as the network does."""
    names = {name for shard in Path(open_base(base)).glob("*.safetensors") for name in read_header(shard)[0]}
    if unlike := sorted({f"{name}.weight" for name in quantized_layers(network)} - names):
        raise ModelUnsupported(
            f"The files of {base} do not contain {join_names(unlike, MAX_LISTED)}, so that its rounded form "
            "cannot be published.",
            "Remove tuning.publish_dequantized_base.",
        )


def quantize(network: nn.Module) -> None:
    """Store the linear layers of the blocks in 4 bits: affine, with a scale and a bias per 64 weights.

    Embeddings and the head keep their format, as bitsandbytes keeps them for nf4.
    """
    targets = set(linear_modules(network, "all-linear"))

    def is_quantized(name: str, module: Any) -> bool:
        return name in targets and module.weight.shape[-1] % GROUP_SIZE == 0

    nn.quantize(network, GROUP_SIZE, BITS, class_predicate=is_quantized)
    # Block by block, so that the original weights of one exist at a time.
    for block in network.layers:
        mx.eval(block.parameters())
        mx.clear_cache()
    mx.eval(network.parameters())


def find_targets(network: nn.Module, base: str, targets: list[str] | str) -> list[str]:
    """Return the linear layers that an adapter changes, by the names that transformers gives them too.

    Raises ModelUnsupported if mlx-lm divides the model into other layers than transformers, for which the
    adapter is published.
    """
    names = linear_modules(network, targets)
    expected = _list_torch_linears(base, targets)
    if unlike := sorted(expected.symmetric_difference(names)):
        raise ModelUnsupported(
            f"mlx-lm divides {base} into other layers than transformers ({join_names(unlike, MAX_LISTED)}), "
            "so an adapter trained with MLX would fit no other engine.",
            TORCH_HINT,
        )
    return names


def check_weight_names(network: nn.Module, base: str) -> None:
    """Raise ModelUnsupported unless all weights have the names and shapes of transformers."""
    model = build_empty_model(base)
    tied = set(model.all_tied_weights_keys)
    expected = {name: tuple(weight.shape) for name, weight in model.named_parameters() if name not in tied}
    actual = {name: tuple(weight.shape) for name, weight in tree_flatten(network.parameters())}
    unlike = {name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)}
    if unlike:
        raise ModelUnsupported(
            f"mlx-lm stores the weights of {base} in another layout than transformers "
            f"({join_names(sorted(unlike), MAX_LISTED)}), so all of them cannot be trained with MLX.",
            f"Train an adapter. {TORCH_HINT}",
        )


def count_network_parameters(network: nn.Module) -> tuple[int, int]:
    """Return the number of trainable parameters and of all; a 4-bit layer counts as its weights."""
    trainable = sum(weight.size for _, weight in tree_flatten(network.trainable_parameters()))
    total = 0
    for module in network.modules():
        for name, value in module.items():
            if not isinstance(value, mx.array) or name.startswith("_"):
                continue
            if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
                total += value.size
            elif name in ("weight", "bias"):
                total += value.size * 32 // module.bits if name == "weight" else value.size
    return trainable, total


def _fuse_adapter(network: nn.Module) -> None:
    """Add the adapter's product to the weights of its layers, which become ordinary ones."""
    fused = [
        (name, layer.fuse())
        for name, layer in network.named_modules()
        if isinstance(layer, LoRALinear | DoRALinear)
    ]
    network.update_modules(tree_unflatten(fused))


def _cast(weights: Any, dtype: mx.Dtype) -> Any:
    return tree_unflatten([(name, weight.astype(dtype)) for name, weight in tree_flatten(weights)])


def _list_torch_linears(base: str, targets: list[str] | str) -> set[str]:
    model = build_empty_model(base)
    names = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    if targets == "all-linear":
        return names
    return {name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)}
