"""The loss of supervised fine-tuning, as a sum over tokens."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trainers.rendering.render import IGNORE_INDEX


def completion_loss(network: Any, ids: mx.array, labels: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """Return the summed cross entropy of the tokens that carry loss; ids and labels are (b, t)."""
    targets = labels[:, 1:]
    carries_loss = targets != IGNORE_INDEX
    logits = network(ids[:, :-1]).astype(mx.float32)
    losses = nn.losses.cross_entropy(logits, mx.where(carries_loss, targets, 0))
    return (losses * carries_loss).sum(), {}
