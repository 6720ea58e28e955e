"""The model runner of mlx-lm with PEFT's adapters, with whole weights or in 4 or 8 bits."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_config, load_model, quantize_model
from transformers import AutoConfig

from serving.engines.decoding.base import (
    ModelNotLoadable,
    ModelRunner,
    check_vocabulary_size,
    context_length,
    open_base_model,
)
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel, eos_token_ids, load_tokenizer
from serving.engines.mlx import lora
from serving.engines.mlx.kv_cache import MlxBatch, prefill, step
from trainers.configs.engines import EngineOptions, EngineQuantization
from trainers.mlx.activations import approximate_gelu
from trainers.mlx.model_config import complete_config, exact_context_length
from trainers.modeling.load import ModelUnsupported

# Shapes change with every step, so freed memory seldom fits the next one; mlx-lm clears its cache as often.
STEPS_BETWEEN_CLEARINGS = 256
BITS = {EngineQuantization.int4: 4, EngineQuantization.int8: 8}


@dataclass
class MlxModelRunner(ModelRunner):
    """The network, and the adapter that its layers add."""

    network: Any = None
    selection: lora.AdapterSelection = field(default_factory=lora.AdapterSelection)
    steps: int = 0

    def prefill(self, sequences: list[SequenceState], every_position: bool) -> tuple[MlxBatch, Any]:
        """Read the prompts one by one."""
        self.selection.adapter = sequences[0].params.served.adapter
        return prefill(self.network, sequences, every_position)

    def step(self, batch: MlxBatch) -> Any:
        """Make one decoding step of the batch with its adapter; return the logits (b, v)."""
        self.selection.adapter = batch.sequences[0].params.served.adapter
        self.steps += 1
        if self.steps % STEPS_BETWEEN_CLEARINGS == 0:
            mx.clear_cache()
        return step(self.network, batch)

    def attach(self, adapter: str, path: str, config: Any) -> None:
        """Convert PEFT's weights to MLX's layout."""
        lora.attach(self.network, self.selection, adapter, path, config)

    def detach(self, adapter: str) -> None:
        """Free the weights."""
        lora.detach(self.network, adapter)


def load_runner(path: str, name: str, options: EngineOptions) -> MlxModelRunner:
    """Load safetensors weights of transformers or mlx-lm, and the tokenizer.

    Raises:
        ModelNotLoadable: The engine cannot serve the model. Other errors are the loader's own.
    """
    folder = open_base_model(path)
    if mx.default_device() == mx.Device(mx.cpu):
        # On the CPU, compiling delays the first completions and gains nothing later.
        mx.disable_compile()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    network, config_eos_ids = load_network(path, Path(folder), config, options)
    tokenizer = load_tokenizer(folder)
    vocabulary_size = config.get_text_config().vocab_size
    check_vocabulary_size(path, tokenizer, vocabulary_size)
    return MlxModelRunner(
        ServedModel(name, folder, None, tokenizer, eos_token_ids(config_eos_ids, tokenizer)),
        config,
        supported_context_length(path, config, network, options.max_model_len),
        vocabulary_size,
        options,
        network=network,
    )


def load_network(path: str, folder: Path, config: Any, options: EngineOptions) -> tuple[Any, Any]:
    """Load the network, and return it with the end tokens in the model's files."""
    file_config = load_config(folder)
    try:
        values = complete_config(path, file_config, config)
    except ModelUnsupported as error:
        raise ModelNotLoadable(error.message) from error
    network, model_config = load_model(folder, lazy=True, model_config=values)
    approximate_gelu(network, config.model_type)
    check_caches(path, network)
    if options.dtype != "auto":
        network.set_dtype(getattr(mx, options.dtype))
    if options.quantization is not None:
        if any(isinstance(layer, nn.QuantizedLinear) for layer in network.modules()):
            raise ModelNotLoadable(f"{path} is quantized already; leave out --quantization.")
        network, _ = quantize_model(network, model_config, group_size=None, bits=BITS[options.quantization])
    mx.eval(network.parameters())
    return network, model_config.get("eos_token_id")


def check_caches(path: str, network: Any) -> None:
    """Raise ModelNotLoadable for a layer whose cache sequences cannot join and leave."""
    for cache in make_prompt_cache(network):
        if not callable(getattr(type(cache), "merge", None)):
            raise ModelNotLoadable(
                f"{path} has layers with a {type(cache).__name__}, which mlx-lm cannot batch; use vllm."
            )


def supported_context_length(path: str, config: Any, network: Any, max_model_len: int | None) -> int:
    """Return the tokens of prompt and completion for which mlx-lm computes the same as transformers.

    Raises:
        ModelNotLoadable: `max_model_len` is more than that.
    """
    has_sliding_cache = not all(isinstance(cache, KVCache) for cache in make_prompt_cache(network))
    exact = exact_context_length(config, has_sliding_cache)
    if exact is not None and max_model_len is not None and max_model_len > exact:
        raise ModelNotLoadable(
            f"--max-model-len {max_model_len} is more than the {exact} tokens for which mlx-lm computes "
            f"{path} correctly; use another engine for longer prompts."
        )
    supported = context_length(path, config, max_model_len)
    return supported if exact is None else min(supported, exact)
