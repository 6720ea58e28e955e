"""The poolings of sentence-transformers over right-padded hidden states, in fp32.

Tensor suffixes: b texts, t tokens, h hidden size, d size of the embedding.
"""

from collections.abc import Sequence

import torch

from trainers.modeling.embedding.recipe import PoolingMode

MIN_COUNT = 1e-9


def pool(
    states_bth: torch.Tensor, mask_bt: torch.Tensor, n_skipped_b: torch.Tensor, modes: Sequence[PoolingMode]
) -> torch.Tensor:
    """Return one vector for each text (b, d), the concatenation of its poolings.

    Args:
        states_bth: Hidden states, in fp32.
        mask_bt: 1 for tokens, 0 for the padding after them.
        n_skipped_b: The number of first tokens, those of a prompt, that are not pooled.
        modes: The poolings.
    """
    positions_t = torch.arange(mask_bt.shape[1], device=mask_bt.device)
    pooled_bt = mask_bt.bool() & (positions_t >= n_skipped_b[:, None])
    return torch.cat([_pool(states_bth, pooled_bt, mode) for mode in modes], dim=-1)


def _pool(states_bth: torch.Tensor, pooled_bt: torch.Tensor, mode: PoolingMode) -> torch.Tensor:
    if mode is PoolingMode.max:
        return states_bth.masked_fill(~pooled_bt[..., None], float("-inf")).amax(dim=1)
    if mode in (PoolingMode.cls, PoolingMode.last_token):
        n_tokens = pooled_bt.shape[1]
        # argmax returns the first maximum.
        first_b = pooled_bt.int().argmax(dim=1)
        last_b = n_tokens - 1 - pooled_bt.flip(1).int().argmax(dim=1)
        index_b = first_b if mode is PoolingMode.cls else last_b
        return states_bth[torch.arange(len(states_bth), device=states_bth.device), index_b]
    weights_bt = pooled_bt.to(states_bth.dtype)
    if mode is PoolingMode.weighted_mean:
        # A token weighs as much as its position, counted from 1: later ones of a decoder have read more.
        weights_bt = weights_bt * torch.arange(1, weights_bt.shape[1] + 1, device=weights_bt.device)
    total_bh = (states_bth * weights_bt[..., None]).sum(dim=1)
    count_b1 = weights_bt.sum(dim=1, keepdim=True).clamp(min=MIN_COUNT)
    return total_bh / (count_b1.sqrt() if mode is PoolingMode.mean_sqrt_len else count_b1)
