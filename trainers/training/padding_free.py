"""Padding-free micro-batches: rows are concatenated to one sequence, and each attends to itself only.

The update of an optimizer step is the same as with padded rows, since its gradient is a mean over tokens.
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
from trainers.modeling.attention.choice import BOUNDARY_ATTENTION, pick_attention
from trainers.modeling.load import pick_device
from trainers.modeling.multimodal.architectures import text_architecture
from trainers.rendering.render import IGNORE_INDEX

ROW_BY_ROW: Final = "row_by_row"
# A test shows for these architectures that rows do not affect each other. Others may carry state from token
# to token outside attention, as recurrent layers and convolutions do.
VERIFIED_ARCHITECTURES: Final = frozenset(
    {"gemma", "gemma3_text", "granite", "llama", "ministral3", "mistral", "olmo2", "phi3", "qwen2", "qwen3"}
)
# A test shows for these that packed rows have the logits of each alone, with the attention of `auto`.
PACKABLE_ARCHITECTURES: Final = VERIFIED_ARCHITECTURES | {
    "cohere2",
    "deepseek_v3",
    "gemma2",
    "gemma4_text",
    "gemma4_unified_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "olmo3",
    "phi",
    "qwen2_moe",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
}


def uses_padding_free(config: SftConfig, model: PreTrainedConfig) -> bool:
    """Return whether rows are concatenated: always when packed, else where attention separates them cheaply.

    Torch's variable-length kernel and FlashAttention do. torch's other attention would need a mask of (all
    tokens)², so on a CPU it is called once per row; on a GPU many small calls are expensive, and rows are
    padded. NEFTune needs padding too, because its noise is scaled by the length of the whole sequence.
    """
    assert config.micro_batch_size is not None
    attention = pick_attention(config.attention, pick_device(config.queue), model, config.precision)
    has_boundaries = attention == Attention.varlen or (
        attention in BOUNDARY_ATTENTION and text_architecture(model) in VERIFIED_ARCHITECTURES
    )
    is_cheap = has_boundaries or _attends_row_by_row(config, model)
    has_gain = config.micro_batch_size > 1 and config.neftune_alpha is None
    return config.packing or (has_gain and is_cheap)


def enable_padding_free(config: SftConfig, model: PreTrainedModel | PeftModel) -> bool:
    """Set the row-by-row attention where it applies, and return whether rows are concatenated."""
    causal = _unwrap_adapter(model)
    is_padding_free = uses_padding_free(config, causal.config)
    if is_padding_free and _attends_row_by_row(config, causal.config):
        causal.set_attn_implementation(ROW_BY_ROW)
    return is_padding_free


def _attends_row_by_row(config: SftConfig, model: PreTrainedConfig) -> bool:
    """Return whether torch's attention can be called once per row.

    Row-by-row attention ignores a sliding window, so the window must not be shorter than a row.
    """
    device = pick_device(config.queue)
    window = getattr(model.get_text_config(), "sliding_window", None) or config.max_length
    return (
        device.type == "cpu"
        and config.attention is Attention.auto
        and pick_attention(config.attention, device, model, config.precision) == Attention.sdpa
        and text_architecture(model) in VERIFIED_ARCHITECTURES
        and window >= config.max_length
    )


def attend_row_by_row(
    module: torch.nn.Module,
    query_bhtd: torch.Tensor,
    key_bhtd: torch.Tensor,
    value_bhtd: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Apply torch's attention to each row of a padding-free micro-batch, or to padded rows at once.

    Query, key and value are (batch, heads, tokens, head width), with batch 1 if padding-free. The boundaries
    of the rows, (rows + 1), are `cu_seq_lens_q`. Returns (batch, tokens, heads, head width).
    """
    if cu_seq_lens_q is None:
        padded_bthd = sdpa_attention_forward(
            module, query_bhtd, key_bhtd, value_bhtd, attention_mask, **options
        )[0]
        return padded_bthd, None
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(tensor.split(lengths, dim=2) for tensor in (query_bhtd, key_bhtd, value_bhtd)), strict=True)
    outputs_bthd = [sdpa_attention_forward(module, *row, None, **options)[0] for row in rows]
    return torch.cat(outputs_bthd, dim=1), None


def _padding_mask(attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    # Without padding there is no mask: each row is causal by itself.
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **options)


AttentionInterface.register(ROW_BY_ROW, attend_row_by_row)
AttentionMaskInterface.register(ROW_BY_ROW, _padding_mask)


@contextmanager
def project_loss_tokens_only(
    model: PreTrainedModel | PeftModel, inputs: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield inputs with which the output layer projects only tokens that carry loss.

    On a GPU, TRL does so itself. On a CPU it also projects prompts and padding and discards the result, which
    is a large share of the work if the vocabulary is large.
    """
    labels_bt = inputs["labels"][:, 1:]
    mask_bt = labels_bt != IGNORE_INDEX

    def select(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        # (batch, tokens, hidden) becomes (1, loss tokens, hidden).
        output.last_hidden_state = output.last_hidden_state[:, :-1][mask_bt][None]
        return output

    hook = _unwrap_adapter(model).base_model.register_forward_hook(select)
    try:
        yield inputs | {"shift_labels": labels_bt[mask_bt][None]}
    finally:
        hook.remove()


def _unwrap_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
