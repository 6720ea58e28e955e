"""The base model and the tokenizers, as the engine holds them in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelNotLoadable(ValueError):
    """The model cannot be served by this engine; the message says why."""


@dataclass(frozen=True, eq=False)
class Served:
    """What a model name stands for: the base (no adapter) or an adapter, each with its own tokenizer."""

    name: str
    path: str
    adapter: str | None
    tokenizer: Any
    eos_ids: frozenset[int]


@dataclass
class Base:
    """The base model, PEFT's view of it once an adapter has been loaded, and all names being served."""

    network: Any
    served: Served
    max_model_len: int
    device: Any
    names: dict[str, Served]
    peft: Any = None
    selected: str | None = None

    def select(self, adapter: str | None) -> None:
        """Make the next forward pass use this adapter, or none."""
        if adapter == self.selected:
            return
        if adapter is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(adapter, inference_mode=True)
        self.selected = adapter


def load_base(path: str, name: str, dtype: str, max_model_len: int | None) -> Base:
    """Load safetensors weights and the tokenizer onto the best device.

    Raises ModelNotLoadable, or the loader's own error.
    """
    if (Path(path) / "adapter_config.json").exists():
        raise ModelNotLoadable(
            f"{path} is an adapter: pass its base as --model and it as --adapter name={path}."
        )
    if Path(path).is_absolute() and not Path(path).is_dir():
        # The hub would be asked for it, and complain of its spelling.
        raise ModelNotLoadable(f"The model folder {path} does not exist.")
    disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(
        path, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False
    )
    refuse_unbatchable(path, network)
    device = best_device()
    network = network.to(device).eval().requires_grad_(False)
    tokenizer = load_tokenizer(path)
    if len(tokenizer) > network.get_input_embeddings().weight.shape[0]:
        raise ModelNotLoadable(
            f"The tokenizer of {path} has more tokens than the model; they do not belong together."
        )
    longest = longest_context(path, network.config, max_model_len)
    served = Served(name, path, None, tokenizer, end_tokens(network, tokenizer))
    return Base(network, served, longest, device, names={name: served})


def load_tokenizer(path: str) -> Any:
    """A tokenizer that neither truncates nor pads, so that threads may share it."""
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.is_fast:
        # Changing truncation between two calls is what makes the Rust object refuse concurrent use.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def end_tokens(network: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, by the model's generation config and by the tokenizer."""
    ends = network.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in [*listed, tokenizer.eos_token_id] if end is not None)


def refuse_unbatchable(path: str, network: Any) -> None:
    """Left padding would leak into a recurrent state, and would move the chunks of chunked attention."""
    kinds = set(getattr(network.config.get_text_config(), "layer_types", None) or [])
    others = kinds - {"full_attention", "sliding_attention"}
    if others or network._is_stateful:
        found = ", ".join(sorted(others)) or "recurrent"
        raise ModelNotLoadable(f"{path} has {found} layers, which the hf engine cannot batch; use vllm.")


def longest_context(path: str, config: Any, asked: int | None) -> int:
    """Tokens of prompt and answer together: what was asked for, bounded by what the model knows."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    if known is None and asked is None:
        raise ModelNotLoadable(f"{path} does not say how long its context is; pass --max-model-len.")
    if known is not None and asked is not None and asked > known:
        raise ModelNotLoadable(f"--max-model-len {asked} is more than the {known} positions of {path}.")
    return int(asked or known or 0)


def best_device() -> Any:
    """CUDA, then Apple's GPU, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
