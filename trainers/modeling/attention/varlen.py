"""torch's variable-length attention as an implementation of transformers, named `varlen`.

It computes padding-free and packed rows without a mask: the kernel gets the boundaries of the rows, and a
sliding window as a number. No package besides torch is needed. Rows with padding, and single tokens after a
cache, go to torch's attention with a mask.
"""

from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature
from typing import Any, Final

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainers.modeling.attention.reference import reference_varlen_attn
from trainers.modeling.multimodal.architectures import list_head_widths, text_architecture


def _import_kernel() -> Callable[..., torch.Tensor] | None:
    # Torch older than 2.10 has no such module.
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    kernel: Callable[..., torch.Tensor] = varlen_attn
    return kernel


# Values of the module, so that compiled code contains them.
VARLEN_KERNEL: Final[Callable[..., torch.Tensor] | None] = _import_kernel()
# The kernel is one operation for the compiler; the reference would be code for each length.
REFERENCE: Final[Callable[..., torch.Tensor]] = torch.compiler.disable(reference_varlen_attn)
KERNEL_OPTIONS: Final = frozenset(signature(VARLEN_KERNEL).parameters if VARLEN_KERNEL is not None else ())
# The first GPUs with its kernel, and the widest head that it computes.
MIN_CAPABILITY: Final = (8, 0)
MAX_HEAD_WIDTH: Final = 256
# Torch 2.10 has a kernel without them.
REQUIRED_OPTIONS: Final = frozenset({"scale", "window_size"})
# On some GPUs the backward pass has no kernel for heads of these widths.
UNSUPPORTED_WIDTHS: Final = range(193, 225)
# A test shows for these that packed and padding-free rows have the logits of each alone. Others may compute
# attention in a way that the kernel does not, such as soft-capped scores or a bias by position.
VARLEN_ARCHITECTURES: Final = frozenset(
    {
        "cohere2",
        "gemma",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt_neox",
        "granite",
        "llama",
        "ministral3",
        "mistral",
        "mixtral",
        "olmo2",
        "olmo3",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    }
)


def has_varlen_kernel(device: torch.device) -> bool:
    """Return whether torch has the kernel for this device."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and KERNEL_OPTIONS >= REQUIRED_OPTIONS
        and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
    )


def explain_varlen_refusal(model: PreTrainedConfig) -> str | None:
    """Return why the kernel does not compute the attention of a model, to complete "The model …", or None."""
    architecture = text_architecture(model)
    if architecture not in VARLEN_ARCHITECTURES:
        return f"has the architecture {architecture}, for which varlen is not proven"
    text = model.get_text_config()
    widths = list_head_widths(model)
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "caps the scores of attention (attn_logit_softcapping)"
    if getattr(text, "use_bidirectional_attention", None):
        return "attends to later tokens too (use_bidirectional_attention)"
    if getattr(text, "attention_dropout", 0.0):
        return f"drops attention at random (attention_dropout {text.attention_dropout:g})"
    for width in sorted(widths):
        if width > MAX_HEAD_WIDTH or width % 8 or width in UNSUPPORTED_WIDTHS:
            return f"has heads of width {width}"
    return None


def attend_varlen(
    module: torch.nn.Module,
    query_bhtd: torch.Tensor,
    key_bhtd: torch.Tensor,
    value_bhtd: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Apply the kernel to the rows of a padding-free micro-batch, or to rows of equal length.

    Query, key and value are (batch, heads, tokens, head width), with batch 1 if padding-free. The boundaries
    of the rows, (rows + 1), are `cu_seq_lens_q`. Returns (batch, tokens, heads, head width).
    """
    n_rows, _, n_tokens, _ = query_bhtd.shape
    if attention_mask is not None or n_tokens != key_bhtd.shape[2]:
        masked_bthd = sdpa_attention_forward(
            module, query_bhtd, key_bhtd, value_bhtd, attention_mask, **options
        )[0]
        return masked_bthd, None
    _check_options(options)
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(
            0, n_rows * n_tokens + 1, n_tokens, dtype=torch.int32, device=query_bhtd.device
        )
        max_length_q = n_tokens
    dtype = _kernel_dtype(value_bhtd)
    query_thd, key_thd, value_thd = (
        tensor.to(dtype).transpose(1, 2).flatten(0, 1) for tensor in (query_bhtd, key_bhtd, value_bhtd)
    )
    output_thd = _kernel(query_thd)(
        query_thd,
        key_thd,
        value_thd,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=options.get("scaling"),
        # transformers counts the token itself as part of its window, and the kernel does not.
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        **_gqa_option(query_thd.shape[1] != key_thd.shape[1]),
    )
    return output_thd.unflatten(0, (n_rows, n_tokens)), None


def _check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for parts of attention that the kernel would silently leave out."""
    ignored = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    ignored += ["dropout"] if options.get("dropout") else []
    ignored += ["is_causal=False"] if options.get("is_causal") is False else []
    if ignored:
        raise ValueError(f"varlen attention does not compute {', '.join(ignored)}")


def _kernel_dtype(value_bhtd: torch.Tensor) -> torch.dtype:
    """Return the dtype of autocast, which does not cast the inputs of this operation; norms return fp32."""
    kind = value_bhtd.device.type
    enabled = torch.is_autocast_enabled(kind)
    dtype: torch.dtype = torch.get_autocast_dtype(kind) if enabled else value_bhtd.dtype
    return dtype


def _kernel(query_thd: torch.Tensor) -> Callable[..., torch.Tensor]:
    # Weights that are trained are fp32, and generation need not run under autocast.
    if query_thd.device.type != "cuda" or query_thd.dtype == torch.float32:
        return REFERENCE
    assert VARLEN_KERNEL is not None, "the choice of attention has checked it"
    return VARLEN_KERNEL


def _gqa_option(is_grouped: bool) -> dict[str, bool]:
    # Without the option, older kernels share keys among queries by themselves.
    return {"enable_gqa": is_grouped} if "enable_gqa" in KERNEL_OPTIONS else {}


def _padding_mask(
    q_length: int, kv_length: int, attention_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor | None:
    # Without padding there is no mask: rows are separated by their boundaries.
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **options)


VARLEN: Final = "varlen"
AttentionInterface.register(VARLEN, attend_varlen)
AttentionMaskInterface.register(VARLEN, _padding_mask)
