"""A batch over one left-padded KV cache, which sequences join and leave between steps.

Tensor suffixes: b sequences, t cached tokens, v vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from serving.engines.decoding.base import DecodeBatch
from serving.engines.decoding.sequence import SequenceState


@dataclass
class HfBatch(DecodeBatch):
    """Sequences with transformers' cache."""

    cache: Any
    mask_bt: Any

    def next_inputs(self) -> tuple[Any, Any]:
        """Return ids and positions (b, 1) of the tokens to feed, and extend the mask by one column."""
        self.mask_bt = torch.nn.functional.pad(self.mask_bt, (0, 1), value=1)
        ids_b1 = torch.tensor([[sequence.last_token] for sequence in self.sequences])
        positions_b1 = torch.tensor([[sequence.length - 1] for sequence in self.sequences])
        return ids_b1, positions_b1

    def merge(self, other: "HfBatch") -> "HfBatch":
        """Return one batch with the sequences of both, padded on the left to the longer cache."""
        width = max(self.mask_bt.shape[1], other.mask_bt.shape[1])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([pad_left(mine.keys, width), pad_left(theirs.keys, width)])
            mine.values = torch.cat([pad_left(mine.values, width), pad_left(theirs.values, width)])
        masks = [
            torch.nn.functional.pad(mask_bt, (width - mask_bt.shape[1], 0))
            for mask_bt in (self.mask_bt, other.mask_bt)
        ]
        return HfBatch([*self.sequences, *other.sequences], self.cache, torch.cat(masks))

    def drop_finished(self) -> "HfBatch | None":
        """Return the batch without finished sequences, and without columns that only they needed."""
        kept = [index for index, sequence in enumerate(self.sequences) if not sequence.finished]
        if not kept:
            return None
        if len(kept) == len(self.sequences):
            return self
        kept_b = torch.tensor(kept, device=self.mask_bt.device)
        mask_bt = self.mask_bt[kept_b]
        n_padding = int(mask_bt.any(dim=0).int().argmax())
        for layer in self.cache.layers:
            # Keys and values have the shape (b, heads, t, head size).
            layer.keys = layer.keys[kept_b, :, n_padding:].contiguous()
            layer.values = layer.values[kept_b, :, n_padding:].contiguous()
        return HfBatch([self.sequences[index] for index in kept], self.cache, mask_bt[:, n_padding:])


def prefill(
    network: Any, device: Any, sequences: list[SequenceState], every_position: bool
) -> tuple[HfBatch, Any]:
    """Read the prompts; return the logits after each (b, v), or a list of those at every position (t, v)."""
    prompts = [sequence.params.prompt_ids for sequence in sequences]
    longest = max(len(ids) for ids in prompts)
    ids_bt = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask_bt = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    positions_bt = (mask_bt.cumsum(dim=-1) - 1).clamp(min=0)
    # A cache created without the model's config keeps whole sequences for sliding-window layers as well; the
    # mask restricts these layers to their window, and sequences of different lengths can be merged.
    batch = HfBatch(sequences, DynamicCache(), mask_bt.to(device))
    output = forward(network, batch, ids_bt, positions_bt, logits_to_keep=0 if every_position else 1)
    if not every_position:
        return batch, output.logits[:, -1]
    return batch, [logits_tv[-len(ids) :] for logits_tv, ids in zip(output.logits, prompts, strict=True)]


def forward(network: Any, batch: HfBatch, ids_bt: Any, positions_bt: Any, logits_to_keep: int) -> Any:
    """Make one forward pass of the batch; `logits_to_keep=0` keeps the logits of all positions."""
    device = batch.mask_bt.device
    return network(
        input_ids=ids_bt.to(device),
        position_ids=positions_bt.to(device),
        attention_mask=batch.mask_bt,
        past_key_values=batch.cache,
        use_cache=True,
        logits_to_keep=logits_to_keep,
    )


def pad_left(states: Any, width: int) -> Any:
    """Pad keys or values (b, heads, t, head size) with zeros on the left to `width` tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
