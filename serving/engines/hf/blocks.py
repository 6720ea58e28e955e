"""Rows that decode together: one left-padded key-value cache, which rows join and leave between steps.

Shapes: b rows, t cached tokens, v vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from serving.engines.hf.model import Base
from serving.engines.hf.rows import Row


@dataclass
class Block:
    """Rows of one adapter. The newest token of each row is not in the cache yet: the next step feeds it."""

    rows: list[Row]
    cache: Any
    mask_bt: Any


def prefill(base: Base, rows: list[Row], every_position: bool) -> tuple[Block, Any]:
    """Read the prompts; returns the logits after each prompt (b, v), or at every position (b, t, v)."""
    longest = max(len(row.ask.prompt_ids) for row in rows)
    padding = [longest - len(row.ask.prompt_ids) for row in rows]
    ids_bt = torch.tensor([[0] * pad + row.ask.prompt_ids for pad, row in zip(padding, rows, strict=True)])
    mask_bt = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    positions_bt = (mask_bt.cumsum(dim=-1) - 1).clamp(min=0)
    # A cache made without the model's config keeps whole sequences also for sliding-window layers; their mask
    # does the sliding, and rows of different lengths can be joined.
    block = Block(rows, DynamicCache(), mask_bt.to(base.device))
    output = forward(base, block, ids_bt, positions_bt, keep=0 if every_position else 1)
    return block, output.logits if every_position else output.logits[:, -1]


def step(base: Base, block: Block) -> Any:
    """Feed the newest token of each row; returns the logits of the next (b, v)."""
    ids_b1 = torch.tensor([[row.newest] for row in block.rows])
    positions_b1 = torch.tensor([[row.length - 1] for row in block.rows])
    block.mask_bt = torch.nn.functional.pad(block.mask_bt, (0, 1), value=1)
    return forward(base, block, ids_b1, positions_b1, keep=1).logits[:, -1]


def join(first: Block, second: Block) -> Block:
    """One block of the rows of both, padded on the left to the longer cache."""
    width = max(first.mask_bt.shape[1], second.mask_bt.shape[1])
    for mine, theirs in zip(first.cache.layers, second.cache.layers, strict=True):
        mine.keys = torch.cat([pad_left(mine.keys, width), pad_left(theirs.keys, width)])
        mine.values = torch.cat([pad_left(mine.values, width), pad_left(theirs.values, width)])
    masks = [
        torch.nn.functional.pad(mask_bt, (width - mask_bt.shape[1], 0))
        for mask_bt in (first.mask_bt, second.mask_bt)
    ]
    return Block([*first.rows, *second.rows], first.cache, torch.cat(masks))


def drop_ended(block: Block) -> Block | None:
    """The block without ended rows and the columns that only they needed; None if no row is left."""
    kept = [index for index, row in enumerate(block.rows) if not row.ended]
    if not kept:
        return None
    if len(kept) == len(block.rows):
        return block
    chosen = torch.tensor(kept, device=block.mask_bt.device)
    mask_bt = block.mask_bt[chosen]
    empty = int(mask_bt.any(dim=0).int().argmax())
    for layer in block.cache.layers:
        layer.keys = layer.keys[chosen, :, empty:].contiguous()
        layer.values = layer.values[chosen, :, empty:].contiguous()
    return Block([block.rows[index] for index in kept], block.cache, mask_bt[:, empty:])


def forward(base: Base, block: Block, ids_bt: Any, positions_bt: Any, keep: int) -> Any:
    """One forward pass of the block with its adapter."""
    base.select(block.rows[0].ask.served.adapter)
    return base.network(
        input_ids=ids_bt.to(base.device),
        position_ids=positions_bt.to(base.device),
        attention_mask=block.mask_bt,
        past_key_values=block.cache,
        use_cache=True,
        logits_to_keep=keep,
    )


def pad_left(states: Any, width: int) -> Any:
    """Keys or values (b, heads, t, size) with zeros before them up to `width` tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
