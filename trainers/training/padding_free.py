"""Rows of a micro-batch laid end to end in one sequence: none is padded, and each attends to itself alone.

What an optimizer step learns is what it learns of padded rows, since its gradient is a mean over tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from peft import PeftModel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Attention
from trainers.modeling.load import pick_attention, pick_device
from trainers.rendering.render import IGNORE_INDEX

ROW_BY_ROW: Final = "row_by_row"
FLASH: Final = (Attention.flash_attention_2, Attention.flash_attention_3)
# Architectures of which a test shows that rows do not see each other; another may carry a state from token to
# token beside its attention.
VERIFIED_ARCHITECTURES: Final = frozenset(
    {"gemma", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"}
)


def uses_padding_free(config: SftConfig, model: PreTrainedConfig) -> bool:
    """Whether rows are laid end to end: packed ones are, and others where attention keeps them apart cheaply.

    Flash attention does. Torch's own would need a mask as large as the square of all tokens, so on a CPU it
    is called for each row; on a GPU, where many small calls are dear, rows are padded. So they are under
    NEFTune, whose noise is scaled by the length of the whole sequence.
    """
    assert config.micro_batch_size is not None
    is_flash = pick_attention(config.attention, pick_device(config.queue)) in FLASH
    is_cheap = _attends_row_by_row(config, model) or (is_flash and model.model_type in VERIFIED_ARCHITECTURES)
    keeps_apart = config.micro_batch_size > 1 and config.neftune_alpha is None
    return config.packing or (keeps_apart and is_cheap)


def enable_padding_free(config: SftConfig, model: PreTrainedModel | PeftModel) -> bool:
    """Answer as `lies_flat` does, and let torch's attention see one row at a time where it can."""
    causal = _without_adapter(model)
    is_flat = uses_padding_free(config, causal.config)
    if is_flat and _attends_row_by_row(config, causal.config):
        causal.set_attn_implementation(ROW_BY_ROW)
    return is_flat


def _attends_row_by_row(config: SftConfig, model: PreTrainedConfig) -> bool:
    """Whether torch's attention may be called for each row: a window shorter than a row would be lost."""
    device = pick_device(config.queue)
    window = getattr(model, "sliding_window", None) or config.max_length
    return (
        device.type == "cpu"
        and config.attention is Attention.auto
        and pick_attention(config.attention, device) == Attention.sdpa
        and model.model_type in VERIFIED_ARCHITECTURES
        and window >= config.max_length
    )


def attend_row_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Torch's attention for each row of a flat micro-batch alone, or for padded rows as they are.

    Query, key and value are (1, heads, tokens, width); rows begin and end at `cu_seq_lens_q`.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    attended = [sdpa_attention_forward(module, *row, None, **options)[0] for row in rows]
    return torch.cat(attended, dim=1), None


def _mask(attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """Of padded rows only: a flat micro-batch has no padding, and each of its rows is causal by itself."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **options)


AttentionInterface.register(ROW_BY_ROW, attend_row_by_row)
AttentionMaskInterface.register(ROW_BY_ROW, _mask)


@contextmanager
def project_loss_tokens_only(
    model: PreTrainedModel | PeftModel, inputs: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Inputs with which TRL's loss multiplies by the head only where a token carries loss.

    TRL does so itself on a GPU. On a CPU it scores prompts and padding too and throws the result away, which
    with a large vocabulary is a good part of the work.
    """
    labels = inputs["labels"][:, 1:]
    mask = labels != IGNORE_INDEX

    def select(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][mask][None]
        return output

    hook = _without_adapter(model).base_model.register_forward_hook(select)
    try:
        yield inputs | {"shift_labels": labels[mask][None]}
    finally:
        hook.remove()


def _without_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
