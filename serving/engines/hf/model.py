"""The model runner of transformers and PEFT, with whole weights or in 4 or 8 bits."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from serving.engines.decoding.base import (
    ModelNotLoadable,
    ModelRunner,
    check_vocabulary_size,
    context_length,
    open_base_model,
)
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel, eos_token_ids, load_tokenizer
from serving.engines.hf.kv_cache import HfBatch, forward, prefill
from trainers.configs.engines import EngineOptions, EngineQuantization
from trainers.modeling.architecture import explain_hf_refusal
from trainers.modeling.multimodal.architectures import auto_class
from trainers.modeling.quantization.nf4 import disable_avx512_repacking

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class HfModelRunner(ModelRunner):
    """The network, and PEFT's wrapper of it once an adapter has been loaded."""

    network: Any = None
    device: Any = None
    peft: Any = None
    selected: str | None = None

    def prefill(self, sequences: list[SequenceState], every_position: bool) -> tuple[HfBatch, Any]:
        """Read all prompts in one padded batch."""
        self._select(sequences[0].params.served.adapter)
        return prefill(self.network, self.device, sequences, every_position)

    def step(self, batch: HfBatch) -> Any:
        """Make one decoding step of the batch with its adapter; return the logits (b, v)."""
        self._select(batch.sequences[0].params.served.adapter)
        return forward(self.network, batch, *batch.next_inputs(), logits_to_keep=1).logits[:, -1]

    def attach(self, adapter: str, path: str, config: Any) -> None:
        """Load the weights with PEFT."""
        if self.peft is None:
            self.peft = PeftModel(self.network, config, adapter)
            self.peft.requires_grad_(False)
        self.peft.load_adapter(path, adapter, torch_device=str(self.device))
        self.network.eval()
        # Loading changes the active adapter, so the next forward pass must select again.
        self.selected = adapter
        self._select(None)

    def detach(self, adapter: str) -> None:
        """Delete the weights with PEFT."""
        self._select(None)
        self.peft.delete_adapter(adapter)
        self.selected = adapter

    def _select(self, adapter: str | None) -> None:
        """Use this adapter, or none, in the next forward pass."""
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

    Raises:
        ModelNotLoadable: The engine cannot serve the model. Other errors are the loader's own.
    """
    folder = open_base_model(path)
    disable_progress_bar()
    device = best_device()
    network = load_network(folder, options, device)
    check_architecture(path, network.config, options)
    tokenizer = load_tokenizer(folder)
    vocabulary_size = network.get_input_embeddings().weight.shape[0]
    check_vocabulary_size(path, tokenizer, vocabulary_size)
    eos_ids = eos_token_ids(network.generation_config.eos_token_id, tokenizer)
    return HfModelRunner(
        ServedModel(name, folder, None, tokenizer, eos_ids),
        network.config,
        context_length(path, network.config, options.max_model_len),
        vocabulary_size,
        options,
        network=network,
        device=device,
    )


def load_network(path: str, options: EngineOptions, device: Any) -> Any:
    """Load the network onto its device, quantized if the options say so."""
    quantization = quantization_config(options, device)
    # Quantized weights cannot be moved afterwards: they are packed on the device that they are loaded to.
    placement: dict[str, Any] = {}
    if quantization is not None:
        placement = {"quantization_config": quantization, "device_map": {"": device}}
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    network = auto_class(config).from_pretrained(
        path, dtype=DTYPES[options.dtype], use_safetensors=True, trust_remote_code=False, **placement
    )
    if quantization is None:
        network = network.to(device)
    disable_avx512_repacking(network)
    return network.eval().requires_grad_(False)


def quantization_config(options: EngineOptions, device: Any) -> BitsAndBytesConfig | None:
    """Return bitsandbytes' config for quantizing on load. Raises ModelNotLoadable where it cannot."""
    if options.quantization is None:
        return None
    if find_spec("bitsandbytes") is None:
        raise ModelNotLoadable(
            f"--quantization {options.quantization} needs bitsandbytes, which is not installed; install the "
            "extra `cuda`."
        )
    if device.type == "mps":
        raise ModelNotLoadable(
            f"--quantization {options.quantization} does not run on Apple's GPU; use the engine mlx."
        )
    if options.quantization is EngineQuantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = DTYPES[options.dtype]
    if dtype == "auto":
        # On the CPU, fp32 gives the same completions as the trainer; on a GPU it would be slow.
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def check_architecture(path: str, config: Any, options: EngineOptions) -> None:
    """Raise ModelNotLoadable for an architecture whose layers or positions the engine cannot handle."""
    reason = explain_hf_refusal(config, options.max_model_len)
    if reason is not None:
        raise ModelNotLoadable(f"{path} {reason}.")


def best_device() -> Any:
    """Return CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
