"""Rows that decode together: one left-padded key-value cache, which rows join and leave between steps.

Shapes: b rows, t cached tokens, v vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from serving.engines.decoding.base import DecodeBatch
from serving.engines.decoding.sequence import SequenceState


@dataclass
class HfBatch(DecodeBatch):
    """Rows with transformers' cache."""

    cache: Any
    mask_bt: Any

    def newest(self) -> tuple[Any, Any]:
        """Ids and positions (b, 1) of the tokens that the next step feeds, for which the mask is widened."""
        self.mask_bt = torch.nn.functional.pad(self.mask_bt, (0, 1), value=1)
        ids_b1 = torch.tensor([[row.newest] for row in self.rows])
        return ids_b1, torch.tensor([[row.length - 1] for row in self.rows])

    def join(self, other: "HfBatch") -> "HfBatch":
        """One block of the rows of both, padded on the left to the longer cache."""
        width = max(self.mask_bt.shape[1], other.mask_bt.shape[1])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([pad_left(mine.keys, width), pad_left(theirs.keys, width)])
            mine.values = torch.cat([pad_left(mine.values, width), pad_left(theirs.values, width)])
        masks = [
            torch.nn.functional.pad(mask_bt, (width - mask_bt.shape[1], 0))
            for mask_bt in (self.mask_bt, other.mask_bt)
        ]
        return HfBatch([*self.rows, *other.rows], self.cache, torch.cat(masks))

    def drop_ended(self) -> "HfBatch | None":
        """Without the columns too that only ended rows needed."""
        kept = [index for index, row in enumerate(self.rows) if not row.ended]
        if not kept:
            return None
        if len(kept) == len(self.rows):
            return self
        chosen = torch.tensor(kept, device=self.mask_bt.device)
        mask_bt = self.mask_bt[chosen]
        empty = int(mask_bt.any(dim=0).int().argmax())
        for layer in self.cache.layers:
            layer.keys = layer.keys[chosen, :, empty:].contiguous()
            layer.values = layer.values[chosen, :, empty:].contiguous()
        return HfBatch([self.rows[index] for index in kept], self.cache, mask_bt[:, empty:])


def prefill(
    network: Any, device: Any, rows: list[SequenceState], every_position: bool
) -> tuple[HfBatch, Any]:
    """Read the prompts; returns the logits after each prompt (b, v), or at every position (b, t, v)."""
    longest = max(len(row.ask.prompt_ids) for row in rows)
    padding = [longest - len(row.ask.prompt_ids) for row in rows]
    ids_bt = torch.tensor([[0] * pad + row.ask.prompt_ids for pad, row in zip(padding, rows, strict=True)])
    mask_bt = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    positions_bt = (mask_bt.cumsum(dim=-1) - 1).clamp(min=0)
    # A cache made without the model's config keeps whole sequences also for sliding-window layers; their mask
    # does the sliding, and rows of different lengths can be joined.
    block = HfBatch(rows, DynamicCache(), mask_bt.to(device))
    output = forward(network, block, ids_bt, positions_bt, keep=0 if every_position else 1)
    return block, output.logits if every_position else output.logits[:, -1]


def forward(network: Any, block: HfBatch, ids_bt: Any, positions_bt: Any, keep: int) -> Any:
    """One forward pass of the block."""
    device = block.mask_bt.device
    return network(
        input_ids=ids_bt.to(device),
        position_ids=positions_bt.to(device),
        attention_mask=block.mask_bt,
        past_key_values=block.cache,
        use_cache=True,
        logits_to_keep=keep,
    )


def pad_left(states: Any, width: int) -> Any:
    """Keys or values (b, heads, t, size) with zeros before them up to `width` tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
