"""A base model of transformers, with PEFT's adapters on it, whole or in 4 or 8 bits."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from serving.engines.decoding.base import (
    ModelNotLoadable,
    ModelRunner,
    check_model_path,
    check_vocabulary_size,
    context_length,
)
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel, eos_token_ids, load_tokenizer
from serving.engines.hf.kv_cache import HfBatch, forward, prefill
from trainers.configs.engines import EngineOptions, EngineQuantization
from trainers.modeling.quantization import disable_avx512_repacking

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class HfModelRunner(ModelRunner):
    """The network, and PEFT's view of it once an adapter has been loaded."""

    network: Any = None
    device: Any = None
    peft: Any = None
    selected: str | None = None

    def prefill(self, rows: list[SequenceState], every_position: bool) -> tuple[HfBatch, Any]:
        """Read all prompts in one padded batch."""
        self._select(rows[0].ask.served.adapter)
        return prefill(self.network, self.device, rows, every_position)

    def step(self, block: HfBatch) -> Any:
        """One decoding step of the block with its adapter."""
        self._select(block.rows[0].ask.served.adapter)
        return forward(self.network, block, *block.newest(), keep=1).logits[:, -1]

    def attach(self, adapter: str, path: str, config: Any) -> None:
        """Have PEFT load the weights."""
        if self.peft is None:
            self.peft = PeftModel(self.network, config, adapter)
            self.peft.requires_grad_(False)
        self.peft.load_adapter(path, adapter, torch_device=str(self.device))
        self.network.eval()
        # Loading moves the active adapter, so the next forward pass must select again.
        self.selected = adapter
        self._select(None)

    def detach(self, adapter: str) -> None:
        """Have PEFT delete the weights."""
        self._select(None)
        self.peft.delete_adapter(adapter)
        self.selected = adapter

    def _select(self, adapter: str | None) -> None:
        """Make the next forward pass use this adapter, or none."""
        if adapter == self.selected:
            return
        if adapter is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(adapter, inference_mode=True)
        self.selected = adapter


def load_runner(path: str, name: str, options: EngineOptions) -> HfModelRunner:
    """Load safetensors weights and the tokenizer onto the best device.

    Raises ModelNotLoadable, or the loader's own error.
    """
    check_model_path(path)
    disable_progress_bar()
    device = best_device()
    network = load_network(path, options, device)
    refuse_unbatchable(path, network)
    tokenizer = load_tokenizer(path)
    vocabulary_size = network.get_input_embeddings().weight.shape[0]
    check_vocabulary_size(path, tokenizer, vocabulary_size)
    return HfModelRunner(
        ServedModel(
            name, path, None, tokenizer, eos_token_ids(network.generation_config.eos_token_id, tokenizer)
        ),
        network.config,
        context_length(path, network.config, options.max_model_len),
        vocabulary_size,
        options,
        network=network,
        device=device,
    )


def load_network(path: str, options: EngineOptions, device: Any) -> Any:
    """The network on its device, in fewer bits where the options say so."""
    quantized = quantization_config(options, device)
    # Quantised weights cannot be moved afterwards: each is packed on the device that it is loaded to.
    placed = {} if quantized is None else {"quantization_config": quantized, "device_map": {"": device}}
    network = AutoModelForCausalLM.from_pretrained(
        path, dtype=DTYPES[options.dtype], use_safetensors=True, trust_remote_code=False, **placed
    )
    if quantized is None:
        network = network.to(device)
    disable_avx512_repacking(network)
    return network.eval().requires_grad_(False)


def quantization_config(options: EngineOptions, device: Any) -> BitsAndBytesConfig | None:
    """How bitsandbytes is to quantise on loading; raises ModelNotLoadable where it cannot."""
    if options.quantization is None:
        return None
    if find_spec("bitsandbytes") is None:
        raise ModelNotLoadable(
            f"--quantization {options.quantization} needs bitsandbytes; install it beside transformers."
        )
    if device.type == "mps":
        raise ModelNotLoadable(
            f"--quantization {options.quantization} does not run on Apple's GPU; use the engine mlx."
        )
    if options.quantization is EngineQuantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    asked = DTYPES[options.dtype]
    # fp32 on the CPU keeps answers the same as the trainer's; a GPU would lose its speed by it.
    computed = asked if asked != "auto" else torch.float32 if device.type == "cpu" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)


def refuse_unbatchable(path: str, network: Any) -> None:
    """Left padding would leak into a recurrent state, and would move the chunks of chunked attention."""
    kinds = set(getattr(network.config.get_text_config(), "layer_types", None) or [])
    others = kinds - {"full_attention", "sliding_attention"}
    if others or network._is_stateful:
        found = ", ".join(sorted(others)) or "recurrent"
        raise ModelNotLoadable(f"{path} has {found} layers, which the hf engine cannot batch; use vllm.")


def best_device() -> Any:
    """CUDA, then Apple's GPU, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
