"""`varlen_attn` of torch in plain operations, for devices without its kernel.

It has the signature of `torch.nn.attention.varlen.varlen_attn`, so that tests on a CPU run everything around
the kernel: the collator, the boundaries of rows, the registration and the mask. It computes the scores of a
row at once and shares no code with torch's other attention, with which it is compared.
"""

import torch


def reference_varlen_attn(
    query_thd: torch.Tensor,
    key_thd: torch.Tensor,
    value_thd: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return the attention of each row to itself, (tokens, query heads, head width).

    The boundaries of the rows, (rows + 1), are `cu_seq_q` and `cu_seq_k`. A token attends to
    `window_size[0]` tokens before it and `window_size[1]` after it; -1 is no limit.
    """
    lengths_q, lengths_k = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max(lengths_q), max(lengths_k)) == (max_q, max_k), "the kernel would read beyond the rows"
    n_groups = query_thd.shape[1] // key_thd.shape[1]
    assert n_groups == 1 or enable_gqa, "query has more heads than key"
    scale = query_thd.shape[-1] ** -0.5 if scale is None else scale
    rows = zip(
        query_thd.split(lengths_q),
        key_thd.repeat_interleave(n_groups, dim=1).split(lengths_k),
        value_thd.repeat_interleave(n_groups, dim=1).split(lengths_k),
        strict=True,
    )
    return torch.cat([_attend(*row, scale, window_size) for row in rows])


def _attend(
    query_qhd: torch.Tensor,
    key_khd: torch.Tensor,
    value_khd: torch.Tensor,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    scores_hqk = torch.einsum("qhd,khd->hqk", query_qhd.float(), key_khd.float()) * scale
    n_queries, n_keys = scores_hqk.shape[1:]
    # The last query is next to the last key, as with a cache of earlier keys.
    position_q1 = torch.arange(n_keys - n_queries, n_keys, device=scores_hqk.device)[:, None]
    distance_qk = position_q1 - torch.arange(n_keys, device=scores_hqk.device)[None]
    left, right = window_size
    if left >= 0:
        scores_hqk = scores_hqk.masked_fill(distance_qk > left, -torch.inf)
    if right >= 0:
        scores_hqk = scores_hqk.masked_fill(distance_qk < -right, -torch.inf)
    weights_hqk = scores_hqk.softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights_hqk, value_khd.float()).to(query_qhd.dtype)
