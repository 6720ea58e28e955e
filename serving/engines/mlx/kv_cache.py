"""A batch over mlx-lm's batched KV caches, which sequences join and leave between steps.

Tensor suffixes: b sequences, t tokens, v vocabulary. Logits are returned as torch tensors on the CPU, so that
both of our engines sample with the same code.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models.cache import make_prompt_cache

from serving.engines.decoding.base import DecodeBatch
from serving.engines.decoding.sequence import SequenceState

PREFILL_TOKENS = 512


@dataclass
class MlxBatch(DecodeBatch):
    """Sequences with one cache for each layer."""

    caches: list[Any]

    def merge(self, other: "MlxBatch") -> "MlxBatch":
        """Return one batch with the sequences of both."""
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            mine.extend(theirs)
        return MlxBatch([*self.sequences, *other.sequences], self.caches)

    def drop_finished(self) -> "MlxBatch | None":
        """Return the batch without finished sequences, or None if no sequence is left."""
        kept = [index for index, sequence in enumerate(self.sequences) if not sequence.finished]
        if not kept:
            return None
        if len(kept) < len(self.sequences):
            for cache in self.caches:
                cache.filter(mx.array(kept))
        return MlxBatch([self.sequences[index] for index in kept], self.caches)


def prefill(network: Any, sequences: list[SequenceState], every_position: bool) -> tuple[MlxBatch, Any]:
    """Read the prompts one by one, without padding.

    Returns:
        The batch and the logits (b, v), or a list of those at every position of each prompt (t, v).
    """
    caches, logits = [], []
    for sequence in sequences:
        cache = make_prompt_cache(network)
        logits.append(prefill_one(network, cache, sequence.params.prompt_ids, every_position))
        caches.append(cache)
    merged = [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)]
    return MlxBatch(sequences, merged), logits if every_position else torch.stack(logits)


def prefill_one(network: Any, cache: list[Any], ids: list[int], every_position: bool) -> Any:
    """Fill a cache with a prompt; return the logits after it (v), or at every position (t, v)."""
    chunks_tv = []
    for start in range(0, len(ids) - 1, PREFILL_TOKENS):
        ids_1t = mx.array([ids[start : min(start + PREFILL_TOKENS, len(ids) - 1)]])
        logits_1tv = network(ids_1t, cache=cache)
        # MLX computes lazily: logits that are never read cost nothing.
        mx.eval([layer.state for layer in cache])
        if every_position:
            chunks_tv.append(to_torch(logits_1tv[0]))
    last_1v = to_torch(network(mx.array([ids[-1:]]), cache=cache)[0])
    return torch.cat([*chunks_tv, last_1v]) if every_position else last_1v[0]


def step(network: Any, batch: MlxBatch) -> Any:
    """Feed the last token of each sequence; return the logits of the next token (b, v)."""
    ids_b1 = mx.array([[sequence.last_token] for sequence in batch.sequences])
    return to_torch(network(ids_b1, cache=batch.caches)[:, -1])


def to_torch(logits: mx.array) -> Any:
    """Compute lazy logits, and return them as a torch tensor of the same shape in fp32."""
    return torch.from_numpy(np.array(logits.astype(mx.float32)))
