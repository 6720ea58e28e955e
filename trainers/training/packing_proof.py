"""Proof that a model keeps the rows of a packed sequence apart, on a small model of its architecture.

Recurrent layers and convolutions carry state from one row to the next unless their kernels reset it, and some
models compute their mask without the positions that separate rows. So two rows are computed packed and each
alone. The first layers, a small vocabulary and random weights suffice: what mixes rows is code, not weights.
"""

from typing import Any, Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from trainers.configs.stages.sft import SftConfig
from trainers.modeling.attention.choice import BOUNDARY_ATTENTION, pick_attention
from trainers.modeling.fused.small_model import build_small_model
from trainers.modeling.load import pick_device
from trainers.modeling.multimodal.architectures import text_architecture
from trainers.runtime.errors import ConfigInvalid, first_line
from trainers.training.padding_free import PACKABLE_ARCHITECTURES

# The second row is longer, so that it is not hidden by the first.
ROWS: Final = [[3 + 7 * n % 100 for n in range(24)], [5 + 11 * n % 100 for n in range(40)]]
# How much of the effect of the other row may remain, by rounding: in fp32, and in bf16 for a fused kernel.
MAX_SHARE, MAX_SHARE_BF16 = 0.01, 0.05


class PackingUnproven(ConfigInvalid):
    """The architecture is not known to keep packed rows apart."""


def prove_packing(config: SftConfig, model: PreTrainedConfig) -> None:
    """Raise PackingUnproven if rows are to be packed for a model that mixes them, or may mix them.

    Architectures that a test proves are not proved again.
    """
    if not config.packing or text_architecture(model) in PACKABLE_ARCHITECTURES:
        return
    device = pick_device(config.queue)
    attention = pick_attention(config.attention, device, model, config.precision)
    is_16_bit = attention in BOUNDARY_ATTENTION and device.type == "cuda"
    try:
        small = build_small_model(model, attention)
        if small is None:
            raise _unproven(model, "could not be proved to keep", "it is too large to be tried quickly")
        small = small.to(device, torch.bfloat16 if is_16_bit else torch.float32).eval()
        share = mixed_share(small)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        # What transformers raises for inputs or a size that an architecture does not support.
        raise _unproven(model, "could not be proved to keep", first_line(error)) from error
    if share > (MAX_SHARE_BF16 if is_16_bit else MAX_SHARE):
        reason = f"in a trial a row changed by {share:.0%} of what the other row's text does to it"
        raise _unproven(model, "do not keep", reason)


def mixed_share(model: PreTrainedModel) -> float:
    """Return how much two packed rows affect each other, as a share of the effect of the first one's text.

    An effect is the largest change of a log-probability.
    """
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    packed = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in collate([{"input_ids": row} for row in ROWS]).items()
        if name != "labels"
    }
    first, second = (torch.tensor([row], device=model.device) for row in ROWS)
    with torch.inference_mode():
        alone = torch.cat([_logprobs(model, input_ids=row) for row in (first, second)])
        change = (_logprobs(model, **packed) - alone).abs().max()
        mixed = _logprobs(model, input_ids=torch.cat([first, second], dim=1))
        return float(change / (mixed - alone).abs().max().clamp(min=1e-12))


def _logprobs(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """Return (tokens, vocabulary)."""
    return model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)


def _unproven(model: PreTrainedConfig, what: str, reason: str) -> PackingUnproven:
    return PackingUnproven(
        f"packing is true, but models of type {model.model_type} {what} the rows of a packed sequence apart: "
        f"{reason}. A row could be trained on another one's text.",
        f"Omit packing. It is proven for {', '.join(sorted(PACKABLE_ARCHITECTURES))}.",
    )
