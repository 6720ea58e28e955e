"""Rows that decode together over mlx-lm's batched caches, which rows join and leave between steps.

Shapes: b rows, t tokens, v vocabulary. Logits are handed over as torch tensors on the CPU, where both engines
of ours choose tokens by the same code.
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
    """Rows with one cache for each layer."""

    caches: list[Any]

    def join(self, other: "MlxBatch") -> "MlxBatch":
        """One block of the rows of both."""
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            mine.extend(theirs)
        return MlxBatch([*self.rows, *other.rows], self.caches)

    def drop_ended(self) -> "MlxBatch | None":
        """The block without ended rows; None if no row is left."""
        kept = [index for index, row in enumerate(self.rows) if not row.ended]
        if not kept:
            return None
        if len(kept) < len(self.rows):
            for cache in self.caches:
                cache.filter(mx.array(kept))
        return MlxBatch([self.rows[index] for index in kept], self.caches)


def prefill(network: Any, rows: list[SequenceState], every_position: bool) -> tuple[MlxBatch, Any]:
    """Read the prompts one by one, without padding; logits (b, v), or (b, t, v) for rows of one length."""
    caches, logits = [], []
    for row in rows:
        cache = make_prompt_cache(network)
        logits.append(read(network, cache, row.ask.prompt_ids, every_position))
        caches.append(cache)
    merged = [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)]
    return MlxBatch(rows, merged), torch.stack(logits)


def read(network: Any, cache: list[Any], ids: list[int], every_position: bool) -> Any:
    """Fill a cache with a prompt; the logits after it (v), or at every position (t, v)."""
    gathered = []
    for start in range(0, len(ids) - 1, PREFILL_TOKENS):
        piece = mx.array([ids[start : min(start + PREFILL_TOKENS, len(ids) - 1)]])
        logits = network(piece, cache=cache)
        # Nothing is computed before it is asked for: logits that nobody wants cost nothing.
        mx.eval([layer.state for layer in cache])
        if every_position:
            gathered.append(to_torch(logits[0]))
    last = to_torch(network(mx.array([ids[-1:]]), cache=cache)[0])
    return torch.cat([*gathered, last]) if every_position else last[0]


def step(network: Any, block: MlxBatch) -> Any:
    """Feed the newest token of each row; the logits of the next (b, v)."""
    ids_b1 = mx.array([[row.newest] for row in block.rows])
    return to_torch(network(ids_b1, cache=block.caches)[:, -1])


def to_torch(logits: mx.array) -> Any:
    """The same numbers in fp32 as a torch tensor, computed by now."""
    return torch.from_numpy(np.array(logits.astype(mx.float32)))
