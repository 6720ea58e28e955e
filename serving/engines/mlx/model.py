"""A base model of mlx-lm, with PEFT's adapters on it, as it was saved or in 4 or 8 bits."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import snapshot_download
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_config, load_model, quantize_model
from transformers import AutoConfig

from serving.engines.decoding.base import (
    ModelNotLoadable,
    ModelRunner,
    check_model_path,
    check_vocabulary_size,
    context_length,
)
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel, eos_token_ids, load_tokenizer
from serving.engines.mlx import lora
from serving.engines.mlx.config import complete_config, exact_context_length
from serving.engines.mlx.kv_cache import MlxBatch, prefill, step
from trainers.configs.engines import EngineOptions, EngineQuantization

FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.txt", "*.jinja"]
# Shapes change with every step, so freed memory is seldom fit for the next; mlx-lm lets go of it as often.
STEPS_BETWEEN_CLEARINGS = 256
BITS = {EngineQuantization.int4: 4, EngineQuantization.int8: 8}


@dataclass
class MlxModelRunner(ModelRunner):
    """The network, and which adapter its layers add."""

    network: Any = None
    selection: lora.Selection = field(default_factory=lora.Selection)
    steps: int = 0

    def prefill(self, rows: list[SequenceState], every_position: bool) -> tuple[MlxBatch, Any]:
        """Read the prompts one by one."""
        self.selection.adapter = rows[0].ask.served.adapter
        return prefill(self.network, rows, every_position)

    def step(self, block: MlxBatch) -> Any:
        """One decoding step of the block with its adapter."""
        self.selection.adapter = block.rows[0].ask.served.adapter
        self.steps += 1
        if self.steps % STEPS_BETWEEN_CLEARINGS == 0:
            mx.clear_cache()
        return step(self.network, block)

    def attach(self, adapter: str, path: str, config: Any) -> None:
        """Convert PEFT's weights to mlx's layout."""
        lora.attach(self.network, self.selection, adapter, path, config)

    def detach(self, adapter: str) -> None:
        """Let go of the weights."""
        lora.detach(self.network, adapter)


def load_runner(path: str, name: str, options: EngineOptions) -> MlxModelRunner:
    """Load safetensors weights, of transformers or of mlx-lm, and the tokenizer.

    Raises ModelNotLoadable, or the loader's own error.
    """
    check_model_path(path)
    if mx.default_device() == mx.Device(mx.cpu):
        # On the CPU the first answers would wait for a compiler, and the later ones gain nothing.
        mx.disable_compile()
    folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, allow_patterns=FILES))
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    network, ends = load_network(path, folder, config, options)
    tokenizer = load_tokenizer(path)
    vocabulary_size = config.get_text_config().vocab_size
    check_vocabulary_size(path, tokenizer, vocabulary_size)
    return MlxModelRunner(
        ServedModel(name, path, None, tokenizer, eos_token_ids(ends, tokenizer)),
        config,
        exact_context(path, config, network, options.max_model_len),
        vocabulary_size,
        options,
        network=network,
    )


def load_network(path: str, folder: Path, config: Any, options: EngineOptions) -> tuple[Any, Any]:
    """The network, and the tokens that end an answer by the model's files."""
    written = load_config(folder)
    network, loaded = load_model(folder, lazy=True, model_config=complete_config(path, written, config))
    refuse_unbatchable(path, network)
    if options.dtype != "auto":
        network.set_dtype(getattr(mx, options.dtype))
    if options.quantization is not None:
        if any(isinstance(layer, nn.QuantizedLinear) for layer in network.modules()):
            raise ModelNotLoadable(f"{path} is quantised already; leave out --quantization.")
        network, _ = quantize_model(network, loaded, group_size=None, bits=BITS[options.quantization])
    mx.eval(network.parameters())
    return network, loaded.get("eos_token_id")


def refuse_unbatchable(path: str, network: Any) -> None:
    """Every layer's cache must be one that rows can join and leave."""
    for cache in make_prompt_cache(network):
        if not callable(getattr(type(cache), "merge", None)):
            raise ModelNotLoadable(f"{path} keeps a {type(cache).__name__}, which mlx-lm cannot batch.")


def exact_context(path: str, config: Any, network: Any, asked: int | None) -> int:
    """Tokens of prompt and answer together, within which mlx-lm computes what transformers does."""
    slides = not all(isinstance(cache, KVCache) for cache in make_prompt_cache(network))
    bound = exact_context_length(config, slides)
    if bound is not None and asked is not None and asked > bound:
        raise ModelNotLoadable(
            f"--max-model-len {asked} is more than the {bound} tokens within which mlx-lm computes {path} "
            f"rightly; use another engine for longer prompts."
        )
    longest = context_length(path, config, asked)
    return longest if bound is None else min(longest, bound)
