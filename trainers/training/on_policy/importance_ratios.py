"""How far the probabilities of sampled tokens in training are from those with which an engine sampled them.

Both compute the same function, so the ratio of each token is near 1: rounding moves it in the third decimal
place in fp32, by some thousandths in fp16, and by some hundredths in bf16. An engine that serves another
adapter, another base or another temperature moves it further. TRL corrects the loss by these ratios, and so
hides the cause.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch

from trainers.configs.training import Precision

MEAN, MAX, OUTSIDE, DIFFERENCE = (
    "importance_ratio/mean",
    "importance_ratio/max",
    "importance_ratio/outside",
    "importance_ratio/logprob_difference",
)
BAND: Final = (0.8, 1.25)
# The share of tokens outside of the band, and the mean difference of log-probabilities, that are unusual.
MAX_OUTSIDE: Final = 0.05
MAX_DIFFERENCE: Final = {Precision.fp32: 0.002, Precision.fp16: 0.02, Precision.bf16: 0.05}


def measure_ratios(batch: Mapping[str, torch.Tensor], accelerator: Any) -> dict[str, float]:
    """Return the importance ratios of a batch's tokens over all ranks: mean, maximum, share outside.

    Each rank must call this.
    """
    mask = batch["completion_mask"].bool()
    difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"])[mask]
    # An engine may report no log-probability for a token.
    difference = difference[difference.isfinite()].float()
    ratio = difference.exp()
    outside = (ratio < BAND[0]) | (ratio > BAND[1])
    count = torch.tensor(float(len(ratio)), device=ratio.device)
    sums = torch.stack([ratio.sum(), outside.sum().float(), difference.abs().sum(), count])
    total, n_outside, differences, n_tokens = accelerator.reduce(sums, reduction="sum").tolist()
    largest = ratio.max() if len(ratio) else count
    tokens = max(1.0, n_tokens)
    return {
        MEAN: total / tokens,
        MAX: float(accelerator.gather(largest).max()),
        OUTSIDE: n_outside / tokens,
        DIFFERENCE: differences / tokens,
    }


def describe_mismatch(step: int, values: Mapping[str, float], precision: Precision) -> str | None:
    """Return the text of a warning if the logged ratios are further from 1 than rounding moves them."""
    if DIFFERENCE not in values:
        return None
    outside, difference = values[OUTSIDE], values[DIFFERENCE]
    if outside <= MAX_OUTSIDE and difference <= MAX_DIFFERENCE[precision]:
        return None
    return (
        f"At step {step} the engine samples from another model than the one in training: the log-probability "
        f"of a token differs by {difference:.3g} on average (usual in {precision}: below "
        f"{MAX_DIFFERENCE[precision]:g}), and {outside:.1%} of the importance ratios are outside "
        f"{BAND[0]:g} to {BAND[1]:g}. The loss is corrected by the ratios, but learns less. Compare the base "
        "and the version of the engine, or set generation to transformers."
    )
